"""A run: data, model, one `StageTrainer` a stage with the same model object, and the result in the run folder.

In: a `RunConfig` and a folder. Out: a filled run folder (`training/run_folder.py`), the trained model in its `model/`.

    train(config, "runs/mine")      # the same call again resumes where it stopped

Training validates by answering questions, never on test data. A stage ends by epochs or on accuracy; the best model
is picked within the last stage.
Read next: `training/schedule.py` (which stages), `training/trainer.py` (one of them).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

import torch
from accelerate import FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from cocot import tasks
from cocot.data.dataset import StageData
from cocot.data.encoding import tokenize, with_head_room
from cocot.data.examples import Encoder
from cocot.data.layout import prompt
from cocot.errors import DataError, Interrupted
from cocot.methods import Asked
from cocot.modeling.latent_model import context_length
from cocot.modeling.method_modules import NAME as MODULES
from cocot.modeling.method_modules import without_modules
from cocot.modeling.thought_settings import set_thought_settings
from cocot.system.files import new_folder
from cocot.system.launch import world_size
from cocot.system.manifest import check, write_manifest
from cocot.system.processes import decided, once, processes
from cocot.system.write_errors import cannot_write
from cocot.tasks.problem import Problem
from cocot.tasks.problem_table import num_seen
from cocot.training.callbacks import ACCURACY, CUT
from cocot.training.checkpoints import newest_checkpoint, prune_checkpoints, step_of
from cocot.training.config import RunConfig
from cocot.training.fsdp import check_fsdp, uses_fsdp
from cocot.training.problems import prepare_data, vocabulary_sample
from cocot.training.run_folder import RunFolder, fingerprint
from cocot.training.schedule import (
    PlannedStage,
    num_batches,
    num_shared_stages,
    num_thoughts,
    plan,
    split_batch,
)
from cocot.training.stage_job import StageJob, Validation
from cocot.training.starting_model import merged_model, prepare_model
from cocot.training.trainer import StageTrainer, check_reporters, check_trainer

_LOGGER = logging.getLogger("cocot")


def train(config: RunConfig, folder: str | Path, shares_with: str | Path | None = None) -> RunFolder:
    """Train, or resume a run that was stopped; a finished run is left as it is.

    Args:
        config: The recipe.
        folder: The run folder; made if it is not there.
        shares_with: Another run folder, whose first stages are taken over as far as they are done and the same work.

    Returns:
        The run folder; its `model` holds the result.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: a problem cannot be used.
        ModelError: the model cannot think.
        RunError: the folder belongs to another run, the loss is not a number, or the disk is full.
        Interrupted: a signal came; the same call resumes the run.
    """
    check_trainer()
    if uses_fsdp():
        check_fsdp(FullyShardedDataParallelPlugin(), config)
    if world_size() > 1:
        processes(config.train.device == "cpu")
    check_reporters(config.train)
    other = None if shares_with is None else RunFolder(shares_with)
    num_shared = num_shared_stages(config, other.read_config()) if other else 0
    training = RunInProgress(config, RunFolder(folder))
    run = training.run
    # Before anything is written: a model that cannot be made, or problems that it cannot read, leave no folder behind.
    is_new = not decided(run.config.exists)
    if is_new:
        training.prepare()
    try:
        once(lambda: training.open_folder(other, num_shared))
        if not run.model.exists():
            with _without_denormals():
                if not is_new or run.finished_stages():
                    training.prepare()
                training.train_stages()
    except OSError as error:
        raise cannot_write(run.path, error) from error
    finally:
        run.close()
    return run


def _warn_of_seen(config: RunConfig, train: Sequence[Sequence[Problem]], valid: Sequence[Problem]) -> None:
    """Say that validation asks what training shows: its accuracy is then that of a memory."""
    count = sum(num_seen(valid, problems) for problems in train) if config.data.train else 0
    if count:
        _LOGGER.warning(
            "%d of the %d problems for validation are in the training file %s, too; accuracy says little "
            "about new problems. Remove them from one of the two.",
            count,
            len(valid),
            config.data.train,
        )


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Let the CPU take numbers below 1e-38 for zero: the gradients of a sure attention are full of them.

    Each costs a hundred times an ordinary one; see `docs/results.md` for what that makes of a step. It holds for this
    thread and those that begin inside, which in a process of its own are all that compute.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class RunInProgress:
    """A run while it trains: its settings, stages, problems and folder, and the model as it stands."""

    def __init__(self, config: RunConfig, run: RunFolder) -> None:
        """Plan the run and make its problems.

        Args:
            config: The recipe.
            run: The run's folder, which is not opened yet.
        """
        self.config, self.run = config, run
        self.batches = split_batch(config.train.batch_size, config.train.device_batch_size, world_size())
        self.stages = plan(config)
        self.data = prepare_data(config)
        self.first_problems = [part.problems for part in self.data.train(self.stages[0], 0)]
        num_batches(config, sum(map(len, self.first_problems)))
        self.sample = vocabulary_sample(self.data, self.stages)

    def prepare(self) -> None:
        """Make the model as the first stage that is not done begins with it; all problems must fit it."""
        run = self.run if self.run.config.exists() else None
        self.model, self.tokenizer = prepare_model(self.config, chain.from_iterable(self.sample), run)
        method = self.config.curriculum.chosen
        self.encoder = Encoder(self.config.curriculum, self.tokenizer)
        self.settings = replace(
            self.encoder.settings,
            task=self.config.data.task,
            modules_of=method.name if method.keeps_modules and hasattr(self.model, MODULES) else None,
        )
        set_thought_settings(self.model, self.settings)
        for planned in self.stages:
            planned.method.check(self.model)
        # Find out now, not hours into the run, whether the most thoughts and every validation fit the context.
        self._stage_data(self.stages[-1])
        for planned in self.stages:
            self.longest_answer(planned)

    def open_folder(self, other: RunFolder | None = None, num_shared: int = 0) -> None:
        """Open the run's folder; take over the first `num_shared` stages of another run as far as they are done."""
        self.run.open(self.config)
        self.run.describe(self.config, fingerprint(*self.first_problems, self.data.valid))
        _warn_of_seen(self.config, self.first_problems, self.data.valid)
        if other is not None:
            self.run.copy_stages(other, num_shared)
        self._finish_stage()  # if the run was killed between a stage's last checkpoint and its entry

    def train_stages(self) -> None:
        """Train every stage that is not done, then put the result in its place."""
        once(self._announce)
        while len(self.run.finished_stages()) < len(self.stages):
            if isinstance(self.model, FSDPModule):  # a model is shared out once
                self.model, _ = prepare_model(self.config, chain.from_iterable(self.sample), self.run)
                set_thought_settings(self.model, self.settings)
            self._train_stage()
        once(self._write_result)

    def _announce(self) -> None:
        """Say how the batch is cut, what there is to say of the data, and that GPUs are left alone if they are."""
        _LOGGER.info("%s", self.batches)
        if self.data.note:
            _LOGGER.info("%s", self.data.note)
        num_gpus = torch.accelerator.device_count()
        if self.config.train.device != "cpu" and self.batches.world_size == 1 < num_gpus:
            _LOGGER.info(
                "training on 1 of %d GPUs; for all of them: "
                "torchrun --nproc_per_node %d -m cocot train RECIPE --out FOLDER",
                num_gpus,
                num_gpus,
            )

    def _write_result(self) -> None:
        """Copy the last stage's best model to `model/`; an adapter is merged into a plain model first."""
        check(self.run.best)
        with new_folder(self.run.model) as result:
            if self.config.model.lora is None:
                shutil.copytree(self.run.best, result, dirs_exist_ok=True)
                return
            plain = merged_model(self.config, self.run.best)
            set_thought_settings(plain, self.settings)
            kept = None if self.settings.modules_of else without_modules(plain.state_dict())
            plain.save_pretrained(result, state_dict=kept)
            self.tokenizer.save_pretrained(result)
            write_manifest(result)

    def longest_answer(self, planned: PlannedStage) -> int:
        """How many tokens a validation waits for an answer: as the recipe says, else what the stage's own texts take.

        Raises:
            DataError: so long an answer does not fit behind its question, or a validation problem cannot be encoded.
        """
        count, asked = num_thoughts(self.config, planned.stage), self.config.train.eval_max_new_tokens
        encoder, limit = self.encoder, context_length(self.model)
        cut = [tokenize(item, encoder.tokenizer) for item in self.data.valid_of(planned)]
        longest = max(len(prompt(item.question, count, encoder.settings, encoder.tokenizer)) for item in cut)
        plain = Encoder(replace(self.config.curriculum, stage_mix=0.0), encoder.tokenizer)
        stage = replace(planned.stage, mixture=())
        examples = (plain(item, stage, Random(0)) for item in cut)
        expected = max(len(example.input_ids) - example.prompt_length for example in examples)
        wanted = expected if asked is None else asked
        if limit is not None and longest + wanted > limit:
            allowed = "its answer takes" if asked is None else "train.eval_max_new_tokens allows"
            raise DataError(
                f"the longest validation question takes {longest} tokens, thoughts included, and {allowed} {wanted}, "
                f"but the model reads {limit}. Leave it out, or take a model with a longer context."
            )
        if asked is not None:
            return asked
        roomy = with_head_room(expected)
        return roomy if limit is None else min(roomy, limit - longest)

    def _stage_data(self, planned: PlannedStage) -> StageData:
        return StageData(
            replace(self.encoder, losses_of=planned.method),
            f"{self.config.seed}/{planned.stage.name}",
            lambda epoch: self.data.train(planned, epoch),
            context_length(self.model),
            tasks.get(self.config.data.task).frontiers if Asked.FRONTIERS in planned.method.asks else None,
        )

    def _train_stage(self) -> None:
        """Train the first stage that is not done, from its newest whole checkpoint if it has one."""
        number = len(self.run.finished_stages())
        planned = self._next_stage()
        name = planned.stage.name
        checkpoint = decided(lambda: newest_checkpoint(self.run.stage(name)))
        trainer = StageTrainer(self.model, self.tokenizer, self.job(number, planned, is_new=checkpoint is None))
        once(lambda: self.run.truncate_log(name, step_of(checkpoint) if checkpoint else -1))
        with trainer.stage_callback.listening(), closing(trainer.metrics_callback):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        once(self._finish_stage)
        num_finished = len(self.run.finished_stages())
        is_interrupted = trainer.stage_callback.agree(trainer.state.global_step)
        assert is_interrupted or num_finished > number
        if is_interrupted and num_finished < len(self.stages):
            raise Interrupted(
                f"stopped in {name} after step {trainer.state.global_step}; everything is saved in {self.run.path}.",
                trainer.stage_callback.signal,
            )

    def job(self, number: int, planned: PlannedStage, is_new: bool) -> StageJob:
        """Stage `number` of the run; `is_new` if it has no checkpoint yet."""
        keeps_moments = number > 0 and self.config.train.optimizer_reset == "never"
        earlier = self.run.path / self.run.finished_stages()[-1]["checkpoint"] if keeps_moments else None
        return StageJob(
            planned=planned,
            method=planned.method,
            data=self._stage_data(planned),
            validation=Validation(
                tasks.get(self.config.data.task),
                self.data.valid_of(planned),
                num_thoughts(self.config, planned.stage),
                self.longest_answer(planned),
            ),
            config=self.config.train,
            batches=self.batches,
            run=self.run,
            seed=self.config.seed + number,
            keeps_best=number == len(self.stages) - 1,
            earlier_moments=None if earlier is None else earlier / OPTIMIZER_NAME,
            # what a pretrained model could do before is part of the result
            validates_first=number == 0 and is_new and self.config.model.path is not None,
        )

    def _next_stage(self) -> PlannedStage:
        """The first stage that is not done; the last one gets the epochs that the others left by ending early."""
        finished = self.run.finished_stages()
        planned = self.stages[len(finished)]
        if planned is not self.stages[-1]:
            return planned
        total = sum(item.stage.num_epochs for item in self.stages)
        left = total - sum(entry["epochs"] for entry in finished)
        return replace(planned, stage=replace(planned.stage, num_epochs=left))

    def _finish_stage(self) -> None:
        """Enter the current stage as finished if its newest checkpoint says that it is over."""
        if len(self.run.finished_stages()) == len(self.stages):
            return
        planned = self._next_stage()
        checkpoint = newest_checkpoint(self.run.stage(planned.stage.name))
        if checkpoint is None:
            return
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        validated = [entry for entry in state.log_history if ACCURACY in entry and entry["step"] == state.global_step]
        if not validated or not planned.is_over(validated[-1]["epoch"], validated[-1][ACCURACY]):
            return
        prune_checkpoints(checkpoint, keep=1)
        entry = {
            "name": planned.stage.name,
            "epochs": round(validated[-1]["epoch"]),
            "accuracy": validated[-1][ACCURACY],
            "cut": validated[-1].get(CUT, 0),
            "checkpoint": checkpoint.relative_to(self.run.path).as_posix(),
        }
        self.run.finish_stage(entry)
