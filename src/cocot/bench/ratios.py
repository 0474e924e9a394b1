"""What is compared, and the goal of each ratio.

In: a device, shapes, rounds. Out: `Ratio`s, one at a time as they are measured.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from typing import Any, cast

import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.benchmark import timer
from transformers import DynamicCache, TrainerCallback

from cocot import tasks
from cocot.bench import workload
from cocot.bench.measure import alternate, live_bytes, matmul_rate, seconds
from cocot.data.collator import collate
from cocot.data.dataset import StageData
from cocot.data.examples import Encoder
from cocot.data.thought_targets import FOR_METHODS
from cocot.interpret.likelihood import continuation_log_probs
from cocot.methods import METHODS, Asked, CurriculumConfig
from cocot.modeling.config import InitConfig, ModelConfig
from cocot.modeling.shared_passes import enable_checkpointing
from cocot.modeling.thought_settings import set_thought_settings
from cocot.system.files import unfinished
from cocot.training.config import DataConfig, RunConfig, TrainConfig
from cocot.training.operations import operations
from cocot.training.problems import prepare_data, vocabulary_sample
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import Batches, plan
from cocot.training.stage_job import StageJob, Validation
from cocot.training.starting_model import prepare_model
from cocot.training.trainer import StageTrainer

_WORD_ID = 0
_NEW_TOKENS = 16
_CONTINUATIONS = 16
_TRAINER_STEPS = 12
_BASIS = "coconut"
"""The method whose step all others are measured by."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measured ratio.

    Attributes:
        name: What over what, then where.
        value: The ratio; for `help`, seconds.
        goal: The most it should be; None where there is no goal.
        detail: The figures behind it, human-readable.
    """

    name: str
    value: float
    goal: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What to measure with.

    Attributes:
        device: cpu or cuda.
        rounds: Pairs a ratio.
        shapes: Names in `workload.SHAPES`.
        batch_size: Rows a batch; None for what suits the device.
    """

    device: torch.device
    rounds: int
    shapes: tuple[str, ...]
    batch_size: int | None = None

    def batch(self, text: str) -> int:
        """Rows a batch: a GPU is filled, a processor is not kept for minutes."""
        return self.batch_size or (128 if self.device.type == "cuda" else {"prosqa": 8, "gsm8k": 32}[text])


def measure(bench: Bench) -> Iterator[Ratio]:
    """Every ratio, cheap ones first."""
    yield from _padding()
    yield _help(bench)
    if "small" in bench.shapes:
        yield _trainer(bench)
        yield from _methods(bench)
    for shape in bench.shapes:
        yield from _probing(bench, shape)
        for text in workload.TEXTS:
            yield from _answers(bench, shape, text)
            yield from _steps(bench, shape, text)


def _padding() -> Iterator[Ratio]:
    for (text, last), goal in zip(workload.TEXTS.items(), (1.03, 1.15), strict=True):
        by_stage = [workload.padding(workload.epoch(text, 128, stage)) for stage in range(last + 1)]
        shuffled = workload.padding(workload.epoch(text, 128, 0, by_length=False))
        detail = f"batch 128, worst of stages 0 to {last}; shuffled only: {shuffled:.2f}"
        yield Ratio(f"padding/{text}", max(by_stage), goal, detail)


def _help(bench: Bench) -> Ratio:
    def run() -> None:
        subprocess.run([sys.executable, "-m", "cocot", "--help"], check=True, capture_output=True)

    taken = alternate({"help": run}, bench.rounds)["help"]
    return Ratio("help", taken, 0.5, "seconds of `cocot --help`")


def _steps(bench: Bench, shape: str, text: str) -> Iterator[Ratio]:
    """Forward and backward pass, next to ordinary fine-tuning on as many tokens."""
    rows = workload.typical(workload.epoch(text, bench.batch(text)))
    forwards = _forwards(bench, shape, rows)
    kept = {name: live_bytes(forwards[name])[0] for name in ("sft", "step", "plain", "checkpointed")}
    is_large = shape == "124m"
    rounds = bench.rounds if is_large else 4 * bench.rounds  # short steps vary more
    taken = alternate({name: _backward(forward) for name, forward in forwards.items()}, rounds)
    at = f"{shape}/{text}"
    columns = max(row.question + row.thoughts for row in rows) + max(row.text for row in rows)
    size = f"batch {len(rows)}, {columns} columns, {workload.THOUGHTS} thoughts"

    def ratio(name: str, over: str, goal: float | None) -> Ratio:
        detail = f"{size}: {taken[name]:.3f} s over {taken[over]:.3f} s"
        return Ratio(f"{name}/{over}/{at}", taken[name] / taken[over], goal, detail)

    def memory(name: str, goal: float | None) -> Ratio:
        detail = f"{size}: kept for backward {kept[name] / 2**20:,.0f} MiB over {kept['sft'] / 2**20:,.0f} MiB"
        return Ratio(f"memory {name}/sft/{at}", kept[name] / kept["sft"], goal, detail)

    yield ratio("step", "sft", 0.75 if is_large else None)
    yield ratio("step", "floor", 1.10)
    yield ratio("step", "plain", None)
    yield memory("plain", None)
    yield memory("step", 0.95)
    yield memory("checkpointed", 0.35)
    yield ratio("checkpointed", "step", 1.3)
    yield ratio("bf16", "step", 0.70)
    yield _share_of_peak(bench, forwards, rows, taken, at)


def _forwards(bench: Bench, shape: str, rows: list[workload.Lengths]) -> dict[str, Callable[[], Tensor]]:
    """The ways to a loss that are compared; all of them read as many tokens."""
    bare, thinking = workload.models(workload.SHAPES[shape], bench.device)
    thoughts, words = (workload.tensors(rows, bench.device, *ids) for ids in ((), (_WORD_ID,)))
    for_bare = {name: words[name] for name in ("input_ids", "attention_mask", "labels")} | {"use_cache": False}
    checkpointing = copy.deepcopy(thinking)
    enable_checkpointing(checkpointing)

    def plain() -> Tensor:
        """With a cache of the caller's the passes share nothing: it grows by concatenation."""
        return _loss(thinking, {**thoughts, "cache": DynamicCache(config=thinking.config)})

    def bf16() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return _loss(thinking, thoughts)

    return {
        "sft": lambda: _loss(bare, for_bare),
        "floor": lambda: _loss(thinking, words),
        "step": lambda: _loss(thinking, thoughts),
        "plain": plain,
        "checkpointed": lambda: _loss(checkpointing, thoughts),
        "bf16": bf16,
    }


def _share_of_peak(
    bench: Bench,
    forwards: dict[str, Callable[[], Tensor]],
    rows: list[workload.Lengths],
    taken: dict[str, float],
    at: str,
) -> Ratio:
    """How much of what a large matrix product reaches on this device: bfloat16 on a GPU, float32 on a processor."""
    name, dtype = ("bf16", torch.bfloat16) if bench.device.type == "cuda" else ("step", torch.float32)
    peak = matmul_rate(bench.device, dtype)
    share = operations(_backward(forwards[name])) / taken[name] / peak
    tokens = sum(row.question + row.thoughts + row.text for row in rows)
    epoch = workload.NUM_PROBLEMS / len(rows) * taken[name]
    detail = (
        f"{name}: {len(rows) / taken[name]:,.1f} examples/s, {tokens / taken[name]:,.0f} tokens/s, peak "
        f"{peak / 1e12:.2f} TFLOP/s; {workload.NUM_PROBLEMS:,} problems in {epoch:,.0f} s, optimizer left out"
    )
    return Ratio(f"share of peak/{at}", share, None, detail)


def _loss(model: Any, batch: dict[str, Any]) -> Tensor:
    model.zero_grad()
    loss: Tensor = model(**batch).loss
    return loss


def _backward(forward: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.backward(forward())

    return run


def _answers(bench: Bench, shape: str, text: str) -> Iterator[Ratio]:
    """64 answers after thoughts, and 64 of the bare model on texts of equal length: as many new tokens."""
    bare, thinking = workload.models(workload.SHAPES[shape], bench.device)
    rows = workload.typical(workload.epoch(text, 64))
    settings = {"do_sample": False, "max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "pad_token_id": 0}

    def answering(model: Any, *ids: int) -> Callable[[], None]:
        prompts = [workload.Lengths(row.question, row.thoughts, 0) for row in rows]
        batch = workload.tensors(prompts, bench.device, *ids)

        def run() -> None:
            model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **settings)

        return run

    runs = {"answers": answering(thinking.eval()), "generate": answering(bare.eval(), _WORD_ID)}
    taken = alternate(runs, bench.rounds)
    detail = f"64 rows, {_NEW_TOKENS} new tokens: {taken['answers']:.3f} s over {taken['generate']:.3f} s"
    yield Ratio(f"answers/generate/{shape}/{text}", taken["answers"] / taken["generate"], 1.10, detail)


def _probing(bench: Bench, shape: str) -> Iterator[Ratio]:
    """The next step's probability for 16 concepts: the question read once, or once for each."""
    _, thinking = workload.models(workload.SHAPES[shape], bench.device)
    row = workload.Lengths(360, workload.THOUGHTS, 0)
    prompt = workload.examples([row])[0].input_ids
    texts = [[1 + number, 40, 41, 42] for number in range(_CONTINUATIONS)]
    model = thinking.eval()
    runs = {
        "shared": lambda: continuation_log_probs(model, [prompt], [texts]),
        "separate": lambda: continuation_log_probs(model, [prompt] * len(texts), [[text] for text in texts]),
    }
    taken = alternate(runs, bench.rounds)
    detail = f"{_CONTINUATIONS} continuations of 366 tokens: {taken['shared']:.3f} s over {taken['separate']:.3f} s"
    yield Ratio(f"probing shared/separate/{shape}", taken["shared"] / taken["separate"], 0.35, detail)


def _trainer(bench: Bench) -> Ratio:
    """What data, logging and bookkeeping add to a step: a `StageTrainer`, and a bare loop over the same batches."""
    rounds = [_trainer_round(bench, number) for number in range(bench.rounds)]
    trained, bare = (median(column) for column in zip(*rounds, strict=True))
    detail = f"small, ProsQA in words, batch 16: {1000 * trained:.1f} ms a step over {1000 * bare:.1f} ms"
    return Ratio("trainer/step", trained / bare, 1.10, detail)


def _trainer_round(bench: Bench, number: int) -> tuple[float, float]:
    """Median seconds of a step with the trainer, and without."""
    config = _trainer_config(bench)
    planned = plan(config)[-1]
    data = prepare_data(config)
    model, tokenizer = prepare_model(config, chain.from_iterable(vocabulary_sample(data, [planned])))
    encoder = Encoder(config.curriculum, tokenizer)
    clock = _Clock()
    with unfinished(Path(gettempdir())) as folder:
        run = RunFolder(folder)
        with closing(run):
            run.open(config)
            job = StageJob(
                planned=planned,
                method=config.curriculum.chosen,
                data=StageData(encoder, "bench", lambda epoch: data.train(planned, epoch), None),
                validation=Validation(tasks.get("prosqa"), data.valid, workload.THOUGHTS, 1),
                config=config.train,
                batches=Batches(config.train.batch_size, config.train.batch_size, 1, 1),
                run=run,
                seed=number,
            )
            trainer = StageTrainer(model, tokenizer, job)
            trainer.add_callback(clock)
            with closing(trainer.metrics_callback):
                trainer.train()
            batches = list(trainer.get_train_dataloader())
    optimizer = trainer.create_optimizer()
    thinking: Any = model

    def step(batch: dict[str, Any]) -> None:
        torch.autograd.backward(_loss(thinking, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.max_grad_norm)
        optimizer.step()

    bare = [seconds(lambda batch=batch: step(batch)) for batch in batches]  # type: ignore[misc]
    return median(clock.taken[1:]), median(bare[1:])


def _methods(bench: Bench) -> Iterator[Ratio]:
    """Forward and backward pass of every method's loss on the same problems in its last stage, next to Coconut's."""
    steps = {name: _method_step(bench, name) for name in METHODS}
    taken = alternate(steps, bench.rounds)
    for name in steps:
        detail = f"ProsQA in words, batch 16: {1000 * taken[name]:.1f} ms over {1000 * taken[_BASIS]:.1f} ms"
        yield Ratio(f"step {name}/{_BASIS}/small", taken[name] / taken[_BASIS], None, detail)


def _method_step(bench: Bench, name: str) -> Callable[[], None]:
    """One training step of a method, without the optimizer."""
    config = _trainer_config(bench)
    config = replace(config, curriculum=replace(config.curriculum, method=name))
    method, planned = config.curriculum.chosen, plan(config)[-1]
    data = prepare_data(config)
    loaded, tokenizer = prepare_model(config, chain.from_iterable(vocabulary_sample(data, [planned])))
    model: Any = loaded.to(cast(Any, bench.device))
    encoder = Encoder(config.curriculum, tokenizer)
    set_thought_settings(model, encoder.settings)
    frontiers = tasks.get(config.data.task).frontiers if Asked.FRONTIERS in method.asks else None
    made = StageData(encoder, "bench", lambda epoch: data.train(planned, epoch), None, frontiers)
    rows = [made[index] for index in range(config.train.batch_size)]
    batch = collate(rows, pad_id=0, latent_id=encoder.settings.latent_id)
    batch = send_to_device(batch, bench.device)
    read = {key: value for key, value in batch.items() if key not in FOR_METHODS}

    def step() -> None:
        model.zero_grad()
        terms = method.losses(lambda **more: model(**{**read, **more}), model, batch)
        torch.autograd.backward(cast(Tensor, sum(terms.values())))

    model.train()
    return step


class _Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self._last = timer()
        self.taken: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        now = timer()
        self.taken.append(now - self._last)
        self._last = now


def _trainer_config(bench: Bench) -> RunConfig:
    shape = workload.SHAPES["small"]
    return RunConfig(
        model=ModelConfig(
            init=InitConfig(
                architecture="gpt2",
                layers=shape["n_layer"],
                width=shape["n_embd"],
                heads=shape["n_head"],
                settings=workload.NO_DROPOUT,
            )
        ),
        data=DataConfig(num_train=16 * _TRAINER_STEPS, num_valid=1, generate={"mode": "released"}),
        curriculum=CurriculumConfig(max_stage=workload.THOUGHTS, epochs_per_stage=1),
        train=TrainConfig(
            batch_size=16,
            device_batch_size=16,
            eval_max_new_tokens=1,
            bf16=False,
            device="cpu" if bench.device.type == "cpu" else None,
        ),
    )
