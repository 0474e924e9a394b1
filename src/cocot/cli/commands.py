"""A function for each command: it takes the arguments, calls what a program would call, and prints what it got.

In: parsed arguments. Out: text on standard output, an exit code. All work is done in `cocot.api` and what it calls.
Heavy imports stand inside the functions, so that `cocot --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cocot.errors import CocotError, ConfigError
from cocot.system.console import LOGGER

if TYPE_CHECKING:
    from cocot.experiments.clusters import Share
    from cocot.training.evaluation_problems import Selection

_GENERATOR = (
    "mode",
    "rendering",
    "layers",
    "width",
    "nodes",
    "parents",
    "ids",
    "symbols",
    "questions",
    "hops",
    "steps",
    "largest",
)
_UNWRITTEN = "not written (--out says where to)"


def _select(args: argparse.Namespace) -> Selection:
    """The problems and their grader, as the arguments say; the model and its run fill the gaps."""
    from cocot.training.evaluation_problems import select_problems

    settings = {name: getattr(args, name) for name in _GENERATOR if getattr(args, name) is not None}
    model = args.model if "model" in args else None
    return select_problems(model, task=args.task, data=args.data, count=args.count, seed=args.seed, **settings)


def _beside_model(args: argparse.Namespace, name: str) -> Path | None:
    """Where results go: as `--out` says, beside the model, here for one of the Hub; None for a bundled model."""
    from cocot.assets import is_bundled

    if args.out is not None or is_bundled(args.model):
        return cast(Path | None, args.out)
    return Path(args.model) / name if Path(args.model).is_dir() else Path(name)


def _stop_at_eof() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _silence_libraries() -> None:
    """Bars and hints of other libraries would stand between our lines."""
    from transformers.utils import logging as hugging_face

    library: Any = hugging_face  # has no annotations
    library.disable_progress_bar()
    library.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _train(args: argparse.Namespace) -> int:
    from cocot.training.recipes import parse_overrides, read_recipe

    overrides = parse_overrides(args.overrides)
    read_recipe(args.recipe, overrides)  # a mistake is told before anything heavy is loaded
    _silence_libraries()
    from cocot.api.training import describe_training, train
    from cocot.system.launch import rank

    if args.dry_run:
        print(describe_training(args.recipe, **overrides))
        return 0
    if args.until_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    run = train(args.recipe, args.out, shares_with=args.shares_with, **overrides)
    if rank() != 0:
        return 0  # the first process speaks for all
    for entry in run.finished_stages():
        cut = f" ({entry['cut']:.0f} answers cut)" if entry.get("cut") else ""
        print(f"{entry['name']}: {entry['epochs']} epochs, validation accuracy {entry['accuracy']:.1%}{cut}")
    print(f"model: {run.model}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.api.studies import compare
    from cocot.experiments.study import axis_values
    from cocot.training.recipes import parse_overrides

    table = compare(
        args.recipe,
        args.methods.split(","),
        args.out,
        num_problems=args.problems,
        test_file=args.data,
        search=dict(axis_values(words) for words in args.search),
        equal_compute=args.equal_compute,
        jobs=args.jobs,
        on=_share(args),
        **parse_overrides(args.overrides),
    )
    out = table.path
    print(f"\n{table}\n")
    print(f"files: {out}/table.json, {out}/table.md, {out}/METHOD/ (model, metrics, answers)")
    return 0


def _share(args: argparse.Namespace) -> Share | None:
    """What each training gets of a cluster."""
    from cocot.experiments.clusters import Share

    if args.on:
        return Share(args.cores or 1, args.gpus or 0, args.on)
    for option, value in {"--cores": args.cores, "--gpus": args.gpus}.items():
        if value is not None:
            raise ConfigError(f"{option} is the share of a training on a cluster; give --on, too.")
    return None


def _reproduce(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.api.pages import report
    from cocot.api.studies import describe_study, reproduce
    from cocot.experiments.study import axis_values
    from cocot.training.recipes import parse_overrides

    settings: dict[str, Any] = {
        "out": args.out,
        "methods": args.methods.split(",") if args.methods else None,
        "axes": dict(axis_values(words) for words in args.axis),
        "seeds": args.seeds,
        "num_problems": args.problems,
        "search": dict(axis_values(words) for words in args.search),
        "equal_compute": args.equal_compute,
        "jobs": args.jobs,
        **parse_overrides(args.overrides),
    }
    share = _share(args)
    if share is None or args.dry_run:
        print(f"{describe_study(args.study, args.scale, **settings)}\n", flush=True)
    if args.dry_run:
        return 0
    began = time.monotonic()
    table = reproduce(args.study, args.scale, test_file=args.data, on=share, **settings)
    out = table.path
    print(f"\n{table}")
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes; files: {out}/table.json, {out}/table.md, a folder a run")
    try:
        print(f"page: {report(table)}")
    except CocotError as error:  # the table stands without it
        LOGGER.warning("%s", error)
    return 0


def _eval(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.api.evaluation import Evaluation, evaluate
    from cocot.system.files import must_be_writable
    from cocot.system.processes import processes

    if args.ablations and args.thoughts is not None:
        raise ConfigError("--ablations tries every number of thoughts; leave --thoughts out.")
    chosen = _select(args)
    out = _beside_model(args, "eval.jsonl")
    if out is not None:
        must_be_writable(out)
    is_first = processes().is_main_process  # which speaks for all
    so_far: list[Evaluation] = []

    def keep(evaluation: Evaluation) -> None:
        so_far[:] = [evaluation]
        if out is not None and is_first:
            evaluation.write(out)

    try:
        evaluation = evaluate(
            args.model,
            problems=chosen,
            num_thoughts=args.thoughts,
            ablations=args.ablations,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            use_generation_config=args.use_generation_config,
            on_result=keep,
        )
    finally:  # a disk that is full by now costs the records, not the result
        if so_far and is_first:
            print(so_far[0].tables)
    if is_first:
        print(*evaluation.notes, sep="\n")
        print(f"records: {_UNWRITTEN if out is None else out.with_stem(f'{out.stem}.*') if args.ablations else out}")
    return 0


def _ask(args: argparse.Namespace) -> int:
    _silence_libraries()
    from transformers import TextStreamer

    from cocot.interpret.thought_words import read_thoughts
    from cocot.modeling.generation import answer
    from cocot.modeling.loading import load_here

    for option, value in {"--thoughts": args.thoughts, "--read-thoughts": args.read_thoughts}.items():
        if args.text_steps and value:
            raise ConfigError(f"--text-steps means no thoughts; leave {option} out.")
    model, tokenizer = load_here(args.model)
    given = answer(
        model,
        tokenizer,
        [args.question],
        num_thoughts=0 if args.text_steps else args.thoughts,
        max_new_tokens=args.max_new_tokens,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )[0]
    print(f"[{given.num_tokens} tokens, {given.num_thoughts} of them thoughts]", file=sys.stderr)
    if args.read_thoughts:
        (texts,) = read_thoughts(
            model, tokenizer, [args.question], num_thoughts=args.thoughts, thoughts_per_step=args.read_thoughts
        )
        for number, text in enumerate(texts, 1):
            print(f"step {number} in thoughts: {text}")
    return 0


def _probe(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.api.probing import probe
    from cocot.interpret.terminal import draw_tree
    from cocot.system.files import must_be_writable

    chosen = _select(args)
    if args.show is not None and not 0 <= args.show < len(chosen.problems):
        raise ConfigError(f"--show {args.show}: the problems are 0 to {len(chosen.problems) - 1}.")
    out = _beside_model(args, "search")
    if out is not None:
        must_be_writable(out / "search.json")
    search = probe(
        args.model,
        problems=chosen,
        num_thoughts=args.thoughts,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
    )
    if out is not None:
        search.write(out)
    print(f"{search}\n")
    if args.show is not None:
        draw_tree(search, args.show)
    print(f"search: {out or _UNWRITTEN}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from cocot.api.pages import report

    print(f"page: {report(args.runs, args.out)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.modeling.loading import load_here
    from cocot.serving.export import export, write_embeddings

    names = ("thoughts", "data", "task", *_GENERATOR)
    if not args.embeds and (given := [f"--{name}" for name in names if getattr(args, name) is not None]):
        raise ConfigError(f"--thoughts and problems go with --embeds; leave {', '.join(given)} out.")
    if args.embeds:
        problems = _select(args).problems
        write_embeddings(*load_here(args.model), problems, args.folder, args.thoughts)
        print(f"{len(problems):,} prompts: {args.folder}")
        return 0
    export(args.model, args.folder)
    print(
        f"model: {args.folder}\nserve it with: transformers serve {args.folder} --trust-remote-code, "
        f"or, where cocot is installed beside vLLM: vllm serve {args.folder}"
    )
    return 0


def _serve(args: argparse.Namespace) -> int:
    _silence_libraries()
    from cocot.modeling.loading import load_here

    try:
        from cocot.serving.server import Limits, Server, run
    except ImportError as error:
        raise ConfigError(f"serving takes the extra `serve`: pip install 'cocot[serve]' ({error}).") from error
    limits = Limits(args.max_new_tokens, args.max_thoughts, args.queue, args.batch_size)
    name = args.name or Path(args.model).name
    run(Server(*load_here(args.model), name, limits, os.environ.get("COCOT_API_KEY")), args.host, args.port)
    return 0


def _data(args: argparse.Namespace) -> int:
    from cocot.system.files import must_be_writable
    from cocot.tasks.files import write_problems

    must_be_writable(args.out)
    chosen = _select(args)
    task, problems = chosen.task, chosen.problems
    statistics = task.statistics(problems)
    write_problems(args.out, problems)
    for name, value in statistics.items():
        print(f"{name:>24}  {value:.3f}")
    print(f"{len(problems):,} problems: {args.out}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    os.environ["TQDM_DISABLE"] = "1"  # bars of the trainings that are measured
    import torch

    from cocot.api.benchmark import benchmark
    from cocot.bench.measure import machine

    _silence_libraries()
    ratios: dict[str, float] = {}
    shapes = args.shapes.split(",")
    for ratio in benchmark(args.device, shapes, rounds=args.rounds, batch_size=args.batch_size):
        verdict = "" if ratio.goal is None else f"goal {ratio.goal:.2f} {'' if ratio.value <= ratio.goal else 'MISSED'}"
        print(f"{ratio.name:<36}{ratio.value:6.3f}  {verdict:<17} {ratio.detail}", flush=True)
        ratios[ratio.name] = round(ratio.value, 4)
    print(json.dumps({"ratios": ratios, "machine": machine(torch.device(args.device))}))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from cocot.methods import METHODS
    from cocot.training.recipes import describe_fields, read_recipe, shipped_recipes

    if args.fields:
        print(describe_fields())
        return 0
    for name in shipped_recipes():
        config = read_recipe(name)
        print(f"{name}\n  cost:   {config.cost or 'not measured yet'}\n  result: {config.result or 'not measured yet'}")
    print("\nEvery recipe takes every method (--curriculum.method NAME):")
    for name, method in METHODS.items():
        print(f"  {name:<{max(map(len, METHODS))}}  {method.summary}")
    return 0


def _env(args: argparse.Namespace) -> int:
    from cocot.training.run_folder import environment

    print(json.dumps(environment(), indent=2))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "compare": _compare,
    "reproduce": _reproduce,
    "eval": _eval,
    "ask": _ask,
    "probe": _probe,
    "report": _report,
    "export": _export,
    "serve": _serve,
    "data": _data,
    "bench": _bench,
    "recipes": _recipes,
    "env": _env,
}
