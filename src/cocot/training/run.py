"""A run: data, model, one `StageTrainer` a stage with the same model object, and the result in the run folder.

In: a `RunConfig` and a folder. Out: a filled run folder (`training/run_folder.py`), the trained model in its `model/`.

    train(config, "runs/mine")      # the same call again goes on where it stopped

Training validates by answering questions, never on test data. A stage ends by epochs or on accuracy; the best model
is picked within the last stage.
Read next: `training/schedule.py` (which stages), `training/trainer.py` (one of them).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from accelerate import FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed

from cocot import tasks
from cocot.data.dataset import StageData
from cocot.data.encoding import encode_question, tokenize, with_head_room
from cocot.data.examples import Encoder
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError, Interrupted
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS
from cocot.modeling.from_scratch import build_model
from cocot.modeling.latent_model import context_length, give_thoughts
from cocot.modeling.loading import load, load_together, load_tokenizer
from cocot.modeling.lora import in_four_bits, merged, with_adapter
from cocot.modeling.special_tokens import add_missing, add_tokens
from cocot.system.files import new_folder
from cocot.system.manifest import check, write_manifest
from cocot.system.processes import check_together, decided, once, processes
from cocot.system.write_errors import cannot_write
from cocot.tasks.problem import Problem, num_seen
from cocot.training.callbacks import ACCURACY, CUT
from cocot.training.checkpoints import newest_checkpoint, prune_checkpoints, step_of
from cocot.training.config import RunConfig
from cocot.training.fsdp import check_fsdp, sent_without_weights, shares_weights, uses_fsdp
from cocot.training.problems import Data, prepare_data, vocabulary_sample
from cocot.training.run_folder import RunFolder, fingerprint
from cocot.training.schedule import (
    Batches,
    PlannedStage,
    num_batches,
    num_shared_stages,
    num_thoughts,
    plan,
    split_batch,
)
from cocot.training.trainer import StageTrainer, Validation, check_reporters, check_trainer, uses_bf16

_LOGGER = logging.getLogger("cocot")


def train(config: RunConfig, folder: str | Path, shares_with: str | Path | None = None) -> RunFolder:
    """Train, or go on with a run that was stopped; a finished run is left as it is.

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
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        processes(config.train.device == "cpu")
    batches = split_batch(config.train.batch_size, config.train.device_batch_size, world_size)
    stages = plan(config)
    data = prepare_data(config)
    first = data.train(stages[0], 0)
    num_batches(config, len(first))
    check_reporters(config.train)
    other = None if shares_with is None else RunFolder(shares_with)
    num_shared = num_shared_stages(config, other.read_config()) if other else 0
    run = RunFolder(folder)
    sample = vocabulary_sample(data, stages)
    # Before anything is written: a model that cannot be made, or problems that it cannot read, leave no folder behind.
    prepared = None if decided(run.config.exists) else _prepare(config, stages, data, sample)

    def open_folder() -> None:
        run.open(config)
        run.describe(config, fingerprint([*first, *data.valid]))
        _warn_of_seen(config, first, data.valid)
        if other is not None:
            run.copy_stages(other, num_shared)
        _finish_stage(run, stages)  # if the run was killed between a stage's last checkpoint and its entry

    try:
        once(open_folder)
        if not run.model.exists():
            with _without_denormals():
                if prepared is None or run.finished_stages():
                    prepared = _prepare(config, stages, data, sample, run)
                _train_stages(config, stages, data, batches, run, sample, *prepared)
    except OSError as error:
        raise cannot_write(run.path, error) from error
    finally:
        run.close()
    return run


def _warn_of_seen(config: RunConfig, train: Sequence[Problem], valid: Sequence[Problem]) -> None:
    """Say that validation asks what training shows: its accuracy is then that of a memory."""
    count = num_seen(valid, train) if config.data.train else 0
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


def _prepare(
    config: RunConfig,
    stages: Sequence[PlannedStage],
    data: Data,
    sample: Sequence[Problem],
    run: RunFolder | None = None,
) -> tuple[PreTrainedModel, Encoder]:
    """The model at the start of the first stage that is not done, and what encodes its problems; all of them fit."""
    model, tokenizer = prepare_model(config, sample, run)
    encoder = Encoder(config.curriculum, tokenizer)
    model.config.thoughts = replace(encoder.settings, task=config.data.task).to_json()
    _check_lengths(config, stages, model, encoder, data)
    return model, encoder


def _train_stages(
    config: RunConfig,
    stages: Sequence[PlannedStage],
    data: Data,
    batches: Batches,
    run: RunFolder,
    sample: Sequence[Problem],
    model: PreTrainedModel,
    encoder: Encoder,
) -> None:
    """Train every stage that is not done, then put the result in its place."""
    tokenizer = cast(PreTrainedTokenizerBase, encoder.tokenizer)
    settings = model.config.thoughts
    once(lambda: _announce(config, batches, data.note))
    while len(run.finished_stages()) < len(stages):
        if isinstance(model, FSDPModule):  # a model is shared out once
            model, _ = prepare_model(config, sample, run)
            model.config.thoughts = settings
        _run_stage(config, stages, model, encoder, data, batches, run)

    def copy_best() -> None:
        check(run.best)
        with new_folder(run.model) as result:
            if config.model.lora is None:
                shutil.copytree(run.best, result, dirs_exist_ok=True)
                return
            plain = merged(_adapted(config, run.best, load, merges=True)[0])
            plain.config.thoughts = model.config.thoughts
            plain.save_pretrained(result)
            tokenizer.save_pretrained(result)
            write_manifest(result)

    once(copy_best)


def _announce(config: RunConfig, batches: Batches, note: str) -> None:
    """Say how the batch is cut, what there is to say of the data, and that GPUs are left alone if they are."""
    _LOGGER.info("%s", batches)
    if note:
        _LOGGER.info("%s", note)
    num_gpus = torch.accelerator.device_count()
    if config.train.device != "cpu" and batches.world_size == 1 < num_gpus:
        _LOGGER.info(
            "training on 1 of %d GPUs; for all of them: "
            "torchrun --nproc_per_node %d -m cocot train RECIPE --out FOLDER",
            num_gpus,
            num_gpus,
        )


def _check_lengths(
    config: RunConfig, stages: Sequence[PlannedStage], model: PreTrainedModel, encoder: Encoder, data: Data
) -> None:
    """Find out now, not hours into the run, whether the most thoughts and every validation fit the context."""
    _stage_data(config, stages[-1], model, encoder, data)
    for planned in stages:
        _longest_answer(config, planned, model, encoder, data)


def _longest_answer(
    config: RunConfig, planned: PlannedStage, model: PreTrainedModel, encoder: Encoder, data: Data
) -> int:
    """How many tokens a validation waits for an answer: as the recipe says, else what the stage's own texts take.

    Raises:
        DataError: so long an answer does not fit behind its question, or a validation problem cannot be encoded.
    """
    count, asked = num_thoughts(config, planned.stage), config.train.eval_max_new_tokens
    prompts = (encode_question(item.question, count, encoder.settings, encoder.tokenizer) for item in data.valid)
    longest, limit = max(map(len, prompts)), context_length(model)
    plain = Encoder(replace(config.curriculum, stage_mix=0.0), encoder.tokenizer)
    examples = (plain(tokenize(item, encoder.tokenizer), planned.stage, Random(0)) for item in data.valid)
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


def _stage_data(
    config: RunConfig, planned: PlannedStage, model: PreTrainedModel, encoder: Encoder, data: Data
) -> StageData:
    seed = f"{config.seed}/{planned.stage.name}"
    return StageData(encoder, planned.stage, seed, lambda epoch: data.train(planned, epoch), context_length(model))


def prepare_tokenizer(config: RunConfig, problems: Sequence[Problem]) -> PreTrainedTokenizerBase:
    """The run's tokenizer without its model: for a look at what will be trained on."""
    if config.model.init is not None:
        return build_tokenizer(problems, config.model.init.tokens)
    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path)
    add_missing(tokenizer, (*SPECIAL_TOKENS, PAUSE))
    return tokenizer


def prepare_model(
    config: RunConfig, problems: Sequence[Problem], run: RunFolder | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at the start of the first stage that is not done yet; `problems` make a vocabulary from scratch.

    All processes of a launch must call. Where FSDP shares weights out, the first one alone reads any.
    """
    set_seed(config.seed)
    if shares_weights():
        model, tokenizer = sent_without_weights(lambda: _begin(config, problems, run, load))
        return model, tokenizer
    return _begin(config, problems, run, load_together)


def _begin(
    config: RunConfig, problems: Sequence[Problem], run: RunFolder | None, load: Callable[..., Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    finished = run.finished_stages() if run else []
    checkpoint = run.path / finished[-1]["checkpoint"] if run and finished else None
    if config.model.lora is not None:
        if checkpoint:
            check_together(checkpoint)
        return _adapted(config, checkpoint, load)
    if checkpoint:
        model, tokenizer = load(checkpoint)
        return model, tokenizer
    if config.model.init is not None:
        scratch = build_tokenizer(problems, config.model.init.tokens)
        return give_thoughts(build_model(config.model.init, scratch), scratch), scratch
    return _pretrained(config, load)


def _pretrained(config: RunConfig, load: Callable[..., Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert config.model.path is not None
    lora = config.model.lora
    dtype = torch.bfloat16 if uses_bf16(config.train) else torch.float32
    model, tokenizer = load(config.model.path, **(in_four_bits(dtype) if lora and lora.quantize else {}))
    add_tokens(model, tokenizer, (PAUSE,))  # whatever the method: runs that share stages have one vocabulary
    return model, tokenizer


def _adapted(
    config: RunConfig, saved: Path | None, load: Callable[..., Any], merges: bool = False
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model with an adapter, a new one or one of the run's own; `merges` if it is to become a plain model."""
    assert config.model.lora is not None
    model, tokenizer = _pretrained(config, load)
    if merges and config.model.lora.quantize:
        model = cast(Any, model).dequantize()
    return with_adapter(model, tokenizer, config.model.lora, config.seed, saved), tokenizer


def _run_stage(
    config: RunConfig,
    stages: Sequence[PlannedStage],
    model: PreTrainedModel,
    encoder: Encoder,
    data: Data,
    batches: Batches,
    run: RunFolder,
) -> None:
    """Train the first stage that is not done, from its newest whole checkpoint if it has one."""
    number = len(run.finished_stages())
    planned = _with_leftover(run, stages)
    stage, tokenizer = planned.stage, cast(PreTrainedTokenizerBase, encoder.tokenizer)
    earlier = run.path / run.finished_stages()[-1]["checkpoint"] / "optimizer.pt" if number else None
    checkpoint = decided(lambda: newest_checkpoint(run.stage(stage.name)))
    trainer = StageTrainer(
        model=model,
        tokenizer=tokenizer,
        planned=planned,
        data=_stage_data(config, planned, model, encoder, data),
        validation=Validation(
            tasks.get(config.data.task),
            data.valid,
            num_thoughts(config, stage),
            _longest_answer(config, planned, model, encoder, data),
        ),
        config=config.train,
        batches=batches,
        run=run,
        seed=config.seed + number,
        keeps_best=number == len(stages) - 1,
        earlier_moments=earlier if config.train.optimizer_reset == "never" else None,
        # what a pretrained model could do before is part of the result
        validates_first=number == 0 and checkpoint is None and config.model.path is not None,
    )
    once(lambda: run.truncate_log(stage.name, step_of(checkpoint) if checkpoint else -1))
    with trainer.stage_callback.listening(), closing(trainer.metrics_callback):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    once(lambda: _finish_stage(run, stages))
    num_finished = len(run.finished_stages())
    is_interrupted = trainer.stage_callback.agree(trainer.state.global_step)
    assert is_interrupted or num_finished > number
    if is_interrupted and num_finished < len(stages):
        raise Interrupted(
            f"stopped in {stage.name} after step {trainer.state.global_step}; everything is saved in {run.path}.",
            trainer.stage_callback.signal,
        )


def _with_leftover(run: RunFolder, stages: Sequence[PlannedStage]) -> PlannedStage:
    """The first stage that is not done; the last one gets the epochs that the others left by ending early."""
    finished = run.finished_stages()
    planned = stages[len(finished)]
    if planned is not stages[-1]:
        return planned
    total_epochs = sum(item.stage.num_epochs for item in stages)
    left = total_epochs - sum(entry["epochs"] for entry in finished)
    return replace(planned, stage=replace(planned.stage, num_epochs=left))


def _finish_stage(run: RunFolder, stages: Sequence[PlannedStage]) -> bool:
    """Enter the current stage as finished if its newest checkpoint says that it is over."""
    if len(run.finished_stages()) == len(stages):
        return True
    planned = _with_leftover(run, stages)
    folder = run.stage(planned.stage.name)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    validated = [entry for entry in state.log_history if ACCURACY in entry and entry["step"] == state.global_step]
    if not validated or not planned.is_over(validated[-1]["epoch"], validated[-1][ACCURACY]):
        return False
    prune_checkpoints(checkpoint, keep=1)
    entry = {
        "name": planned.stage.name,
        "epochs": round(validated[-1]["epoch"]),
        "accuracy": validated[-1][ACCURACY],
        "cut": validated[-1].get(CUT, 0),
        "checkpoint": checkpoint.relative_to(run.path).as_posix(),
    }
    run.finish_stage(entry)
    return True
