"""A run: data, model, one `StageTrainer` a stage with the same model object, and the result in the run folder.

In: a `RunConfig` and a folder. Out: a filled run folder (see `runs.py`) with the trained model in `model/`.

    train(config, "runs/mine")      # the same call again goes on where it stopped

Training validates by answering questions, never on test data. A stage ends by the clock or on accuracy; the best model
is picked within the last stage.
Read next: `plan.py` (which stages), `stage_trainer.py` (one of them).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed

from cocot import tasks
from cocot.adapters import in_four_bits, merged, with_adapter
from cocot.batching import StageData
from cocot.callbacks import ACCURACY
from cocot.checksums import check, seal
from cocot.config import RunConfig
from cocot.curriculum import PAUSE, SPECIAL_TOKENS, Encoder, encode_question
from cocot.errors import ConfigError, DataError, Interrupted
from cocot.loading import load, load_tokenizer, processes
from cocot.model import add_missing, add_tokens, give_thoughts
from cocot.plan import Batches, PlannedStage, num_shared_stages, num_thoughts, plan, split_batch
from cocot.recipe_files import read_recipe
from cocot.runs import RunFolder, fingerprint, newest_checkpoint, prune_checkpoints, step_of
from cocot.scratch import build_model, build_tokenizer
from cocot.stage_trainer import StageTrainer, Validation, uses_bf16
from cocot.tasks.files import read_problems
from cocot.tasks.problem import Problem
from cocot.writing import cannot_write, new_folder

_LOGGER = logging.getLogger("cocot")
_ENOUGH = 2000
"""Generated problems that surely hold every word of their generator."""


@dataclass(frozen=True)
class Data:
    """The problems of a run.

    Attributes:
        valid: For validation.
        train: Problems of a stage and an epoch: `train(planned, epoch)`.
    """

    valid: Sequence[Problem]
    train: Callable[[PlannedStage, int], Sequence[Problem]]


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
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        processes(config.train.device == "cpu")
    batches = split_batch(config.train.batch_size, config.train.device_batch_size, world_size)
    stages = plan(config)
    data = prepare_data(config)
    first = data.train(stages[0], 0)
    if len(first) < config.train.batch_size:
        raise ConfigError(
            f"an epoch of {len(first)} problems holds no batch of {config.train.batch_size}; "
            "lower train.batch_size or give more problems."
        )
    run = RunFolder(folder)

    def open_folder() -> None:
        run.open(config)
        run.describe(config, fingerprint([*first, *data.valid]))
        if shares_with is not None:
            other = read_recipe(str(RunFolder(shares_with).config))
            run.adopt(RunFolder(shares_with), num_shared_stages(config, other))
        _finish_stage(run, stages)  # if the run was killed between a stage's last checkpoint and its entry

    try:
        _once(open_folder)
        if not run.model.exists():
            with _without_denormals():
                _train_stages(config, stages, data, batches, run)
    except OSError as error:
        raise cannot_write(run.path, error) from error
    finally:
        run.close()
    return run


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


def _train_stages(
    config: RunConfig,
    stages: Sequence[PlannedStage],
    data: Data,
    batches: Batches,
    run: RunFolder,
) -> None:
    """Train every stage that is not done, then put the result in its place."""
    sample = vocabulary_sample(data, stages)
    model, tokenizer = prepare_model(config, sample, run)
    encoder = Encoder(config.curriculum, tokenizer)
    model.config.thoughts = encoder.settings.to_json()
    _check_lengths(config, stages[-1], model, encoder, data)
    _once(lambda: _LOGGER.info("%s", batches))
    while len(run.finished_stages()) < len(stages):
        if isinstance(model, FSDPModule):  # a model is shared out once
            model, _ = prepare_model(config, sample, run)
            model.config.thoughts = encoder.settings.to_json()
        _run_stage(config, stages, model, encoder, data, batches, run)

    def copy_best() -> None:
        check(run.best)
        with new_folder(run.model) as result:
            if config.model.lora is None:
                shutil.copytree(run.best, result, dirs_exist_ok=True)
                return
            plain = merged(_adapted(config, run.best, merges=True)[0])
            plain.config.thoughts = model.config.thoughts
            plain.save_pretrained(result)
            tokenizer.save_pretrained(result)
            seal(result)

    _once(copy_best)


def _check_lengths(config: RunConfig, last: PlannedStage, model: PreTrainedModel, encoder: Encoder, data: Data) -> None:
    """Find out now, not hours into the run, whether the most thoughts and the validation questions fit the context."""
    _stage_data(config, last, model, encoder, data)
    limit = _context(model)
    count, room = num_thoughts(config, last.stage), config.train.eval_max_new_tokens
    prompts = (encode_question(item.question, count, encoder.settings, encoder.tokenizer) for item in data.valid)
    longest = max(map(len, prompts))
    if limit is not None and longest + room > limit:
        raise DataError(
            f"the longest validation question takes {longest} tokens, thoughts included, and train.eval_max_new_tokens "
            f"allows {room} for its answer, but the model reads {limit}. Lower one of them, or take a longer context."
        )


def _stage_data(
    config: RunConfig, planned: PlannedStage, model: PreTrainedModel, encoder: Encoder, data: Data
) -> StageData:
    seed = f"{config.seed}/{planned.stage.name}"
    return StageData(encoder, planned.stage, seed, lambda epoch: data.train(planned, epoch), _context(model))


def _context(model: PreTrainedModel) -> int | None:
    return getattr(model.config, "max_position_embeddings", None)


def _once(act: Callable[[], Any]) -> None:
    """Let the first process act, and the others wait until it has: a run folder has one writer."""
    if int(os.environ.get("RANK", "0")) == 0:
        act()
    if dist.is_initialized():
        dist.barrier()


def prepare_data(config: RunConfig) -> Data:
    """Read or generate the problems; generated ones depend on the seed, the stage and the epoch alone."""
    settings = config.data
    task = tasks.get(settings.task)

    def generate(count: int, name: str, how: dict[str, Any]) -> list[Problem]:
        return task.generate(count, seed=Random(f"{config.seed}/{name}").getrandbits(48), **how)

    if settings.valid:
        valid = read_problems(settings.valid)
    else:
        valid = generate(settings.num_valid, "valid", {**settings.generate, **settings.valid_generate})
    if settings.train:
        problems = read_problems(settings.train)
        return Data(valid, lambda planned, epoch: problems)

    @lru_cache(maxsize=1)
    def named(name: str, how: str) -> list[Problem]:
        return generate(settings.num_train, name, json.loads(how))

    def problems_of(planned: PlannedStage, epoch: int) -> list[Problem]:
        kind = "easier" if planned.stage.name == "warmup" else "train"
        name = f"{planned.stage.name}/{epoch}" if settings.fresh else kind
        return named(name, json.dumps(planned.generate))

    return Data(valid, problems_of)


def vocabulary_sample(data: Data, stages: Sequence[PlannedStage]) -> list[Problem]:
    """Problems that hold every word of a run: those of each stage's first epochs, and those of validation."""
    lists = [data.valid, *chain.from_iterable(_first_epochs(data, planned) for planned in stages)]
    distinct = {id(problems): problems for problems in lists}
    return [problem for problems in distinct.values() for problem in problems]


def _first_epochs(data: Data, planned: PlannedStage) -> Iterator[Sequence[Problem]]:
    """As many epochs as it takes to see every word: one, where an epoch is large."""
    count = 0
    for epoch in range(planned.stage.num_epochs):
        problems = data.train(planned, epoch)
        yield problems
        count += len(problems)
        if count >= _ENOUGH:
            return


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
    """The model at the start of the first stage that is not done yet; `problems` make a vocabulary from scratch."""
    set_seed(config.seed)
    finished = run.finished_stages() if run else []
    checkpoint = run.path / finished[-1]["checkpoint"] if run and finished else None
    if config.model.lora is not None:
        return _adapted(config, checkpoint)
    if checkpoint:
        return load(checkpoint)
    if config.model.init is not None:
        scratch = build_tokenizer(problems, config.model.init.tokens)
        return give_thoughts(build_model(config.model.init, scratch), scratch), scratch
    return _pretrained(config)


def _pretrained(config: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert config.model.path is not None
    lora = config.model.lora
    dtype = torch.bfloat16 if uses_bf16(config.train) else torch.float32
    model, tokenizer = load(config.model.path, **(in_four_bits(dtype) if lora and lora.quantize else {}))
    add_tokens(model, tokenizer, (PAUSE,))  # whatever the method: runs that share stages have one vocabulary
    return model, tokenizer


def _adapted(config: RunConfig, saved: Path | None, merges: bool = False) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model with an adapter, a new one or one of the run's own; `merges` if it is to become a plain model."""
    assert config.model.lora is not None
    model, tokenizer = _pretrained(config)
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
    checkpoint = newest_checkpoint(run.stage(stage.name))
    trainer = StageTrainer(
        model=model,
        tokenizer=tokenizer,
        planned=planned,
        data=_stage_data(config, planned, model, encoder, data),
        validation=Validation(tasks.get(config.data.task), data.valid, num_thoughts(config, stage)),
        config=config.train,
        batches=batches,
        run=run,
        seed=config.seed + number,
        keeps_best=number == len(stages) - 1,
        inherited_optimizer=earlier if config.train.optimizer_reset == "never" else None,
        # what a pretrained model could do before is part of the result
        validates_first=number == 0 and checkpoint is None and config.model.path is not None,
    )
    _once(lambda: run.rewind_log(stage.name, step_of(checkpoint) if checkpoint else -1))
    with trainer.pace.listening(), closing(trainer.journal):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _once(lambda: _finish_stage(run, stages))
    num_finished = len(run.finished_stages())
    is_interrupted = trainer.pace.agree()
    assert is_interrupted or num_finished > number
    if is_interrupted and num_finished < len(stages):
        raise Interrupted(
            f"stopped in {stage.name} after step {trainer.state.global_step}; everything is saved in {run.path}.",
            trainer.pace.signal,
        )


def _with_leftover(run: RunFolder, stages: Sequence[PlannedStage]) -> PlannedStage:
    """The first stage that is not done; the last one gets the epochs that the others left by ending early."""
    finished = run.finished_stages()
    planned = stages[len(finished)]
    if planned is not stages[-1]:
        return planned
    by_the_clock = sum(item.stage.num_epochs for item in stages)
    left = by_the_clock - sum(entry["epochs"] for entry in finished)
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
        "checkpoint": checkpoint.relative_to(run.path).as_posix(),
    }
    run.finish_stage(entry)
    return True
