"""The command line: `cocot train | eval | ask | probe | compare | reproduce | report | data | bench | ...`.

Heavy imports stand inside the commands, so that `cocot --help` answers at once. An error of ours is one line and exit
code 2. Ctrl-C exits with 130, SIGTERM with 143 and a closed terminal with 129, training after it saved its state.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cocot.cli.arguments import PAGE, build_parser
from cocot.errors import CocotError, ConfigError, Interrupted
from cocot.system.console import LOGGER, messages, say

if TYPE_CHECKING:
    from cocot.training.config import RunConfig
    from cocot.training.test_problems import Selection


_GENERATOR = ("mode", "rendering", "layers", "width", "nodes", "hops", "steps", "largest")
_UNWRITTEN = "not written (--out says where to)"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with messages():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args, overrides = build_parser().parse_known_args(argv)
        args.overrides = overrides
        if args.overrides and not args.takes_overrides:
            raise ConfigError(_unrecognized(args))
        if "model" in args:
            from cocot.assets import locate

            args.model = locate(args.model)
        return COMMANDS[args.command](args)
    except CocotError as error:
        command = shlex.join(["cocot", *(sys.argv[1:] if argv is None else argv)])
        say(f"{error} To resume: {command}" if isinstance(error, Interrupted) else str(error))
        return error.exit_code
    except OSError as error:
        hint = ". Where you may not write, choose another place." if error.errno in _READ_ONLY else ""
        say(f"{error}{hint}")
        return CocotError.exit_code
    except KeyboardInterrupt:  # where a program calls this function; a process of ours takes signals itself
        say("interrupted.")
        return 130


def _unrecognized(args: argparse.Namespace) -> str:
    """What to say of arguments that a command does not have."""
    options = [f"--{name.replace('_', '-')}" for name in vars(args)]
    near = get_close_matches(args.overrides[0].partition("=")[0], options, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unrecognized arguments: {shlex.join(args.overrides)}{hint} (see `cocot {args.command} --help`)"


def _select(args: argparse.Namespace) -> Selection:
    """The problems and their grader, as the arguments say; the model and its run fill the gaps."""
    from cocot.training.test_problems import select

    settings = {name: getattr(args, name) for name in _GENERATOR if getattr(args, name) is not None}
    model = args.model if "model" in args else None
    return select(model, task=args.task, data=args.data, count=args.count, seed=args.seed, settings=settings)


def _train(args: argparse.Namespace) -> int:
    from cocot.training.recipes import read_recipe

    config = read_recipe(args.recipe, args.overrides)
    out = args.out or Path("runs") / Path(args.recipe).stem
    _warn_of_batch(config, read_recipe(args.recipe))
    _silence_libraries()
    if args.dry_run:
        return _dry_run(config)
    from cocot.system.launch import rank
    from cocot.training.run import train

    if args.until_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    run = train(config, out, args.shares_with)
    if rank() != 0:
        return 0  # the first process speaks for all
    for entry in run.finished_stages():
        cut = f" ({entry['cut']:.0f} answers cut)" if entry.get("cut") else ""
        print(f"{entry['name']}: {entry['epochs']} epochs, validation accuracy {entry['accuracy']:.1%}{cut}")
    print(f"model: {run.model}")
    return 0


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


def _warn_of_batch(config: RunConfig, recipe: RunConfig) -> None:
    size, meant = config.train.batch_size, recipe.train.batch_size
    if size != meant:
        LOGGER.warning(
            "train.batch_size is %d, the recipe's is %d; results will not compare. "
            "To save memory, lower train.device_batch_size instead.",
            size,
            meant,
        )


def _dry_run(config: RunConfig) -> int:
    from cocot.training.problems import prepare_data, vocabulary_sample
    from cocot.training.schedule import describe_encoding, describe_plan, plan
    from cocot.training.starting_model import prepare_tokenizer

    data = prepare_data(config)
    stages = plan(config)
    problems = data.train(stages[-1], 0)
    print(f"method {config.curriculum.method}: {config.curriculum.chosen.summary}\n")
    print(describe_plan(config, len(problems)), data.note, sep="\n" if data.note else "", end="\n\n")
    longest = max(problems, key=lambda problem: len(problem.steps))
    print(describe_encoding(config, longest, prepare_tokenizer(config, vocabulary_sample(data, stages))))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from cocot.experiments.compare import compare
    from cocot.experiments.study import METHOD, Study, trials
    from cocot.experiments.tables import plain

    out = args.out or Path("runs") / Path(args.recipe).stem
    study = Study(args.recipe, {METHOD: args.methods.split(",")}, num_problems=args.problems)
    _silence_libraries()
    table = compare(study, trials(study, args.overrides), out, args.jobs, args.data)
    print(f"\n{plain(table['rows'])}\n")
    print(f"files: {out}/table.json, {out}/table.md, {out}/METHOD/ (model, metrics, answers)")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from cocot.experiments.compare import compare, make_trainings
    from cocot.experiments.estimates import describe_plan, estimate
    from cocot.experiments.study import SEED, read_study, trials
    from cocot.experiments.tables import plain, shortcuts
    from cocot.system.hardware import allowed_cores

    study = read_study(args.study, args.scale).with_axis(SEED, range(args.seeds))
    for words in [*([f"method={args.methods}"] if args.methods else []), *args.axis]:
        study = study.with_words(words)
    if args.problems is not None:
        study = replace(study, num_problems=args.problems)
    out = args.out or Path("runs") / f"{args.study}_{args.scale}"
    chosen = trials(study, args.overrides)
    is_on_cpu = chosen[0].config.train.device == "cpu"
    jobs = args.jobs if args.jobs is not None else allowed_cores() if is_on_cpu else 1
    _silence_libraries()
    trainings = make_trainings(study, chosen, out)
    print(f"{args.study} at scale {args.scale}: {study.note}")
    LOGGER.info("measuring the speed of every run on a few steps ...")
    estimates = estimate(trainings, jobs, out)
    print(f"\n{describe_plan(study, trainings, estimates, jobs)}\n", flush=True)
    if args.dry_run:
        return 0
    began = time.monotonic()
    table = compare(study, chosen, out, jobs, args.data)
    print(f"\n{plain(table['rows'])}")
    if table["ablations"]:
        print(f"\n{plain(table['ablations'])}")
    print("", *shortcuts(table), sep="\n")
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes; files: {out}/table.json, {out}/table.md, a folder a run")
    try:
        print(f"page: {_write_page([out], out / PAGE)}")
    except CocotError as error:  # the table stands without it
        LOGGER.warning("%s", error)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from cocot.evaluation.ablations import run_ablations
    from cocot.evaluation.evaluate import compute_metrics, evaluate_together, write_predictions
    from cocot.experiments.tables import plain, shortcuts_of
    from cocot.modeling.loading import load_here
    from cocot.system.files import must_be_writable
    from cocot.system.processes import processes

    if args.ablations and args.thoughts is not None:
        raise ConfigError("--ablations tries every number of thoughts; leave --thoughts out.")
    _silence_libraries()
    chosen = _select(args)
    task, problems = chosen.task, chosen.problems
    out = _beside_model(args, "eval.jsonl")
    if out is not None:
        must_be_writable(out)
    here = processes()
    is_first = here.is_main_process
    names = ("batch_size", "max_new_tokens", "use_generation_config")
    settings = {**{name: getattr(args, name) for name in names}, "shows_progress": is_first}
    model, tokenizer = load_here(args.model)
    if args.ablations:
        if here.num_processes > 1:
            raise ConfigError("--ablations runs in one process.")
        results = run_ablations(model, tokenizer, task, problems, **settings)
    else:
        name = Path(args.model).name
        records = evaluate_together(model, tokenizer, task, problems, num_thoughts=args.thoughts, **settings)
        results = iter([(name, records)])
        if not is_first:
            return 0  # the first process speaks for all
    rows = []
    try:
        for name, records in results:
            axis = "thoughts" if args.ablations else "model"
            rows.append({"values": {axis: name}, "tests": {"test": compute_metrics(records).to_json()}})
            if out is not None:
                write_predictions(
                    out.with_stem(f"{out.stem}.{name.replace(' ', '_')}") if args.ablations else out, records
                )
    finally:  # a disk that is full by now costs the records, not the result
        if rows:
            print(plain(rows))
    if args.ablations:
        lines = [f"{name}: {value:.1%}" for name, value in shortcuts_of(task, problems).items()]
        print(*(lines or ["no shortcuts are known for these problems"]), sep="\n")
    print(_how(args, model, tokenizer, chosen))
    print(f"records: {_UNWRITTEN if out is None else out.with_stem(f'{out.stem}.*') if args.ablations else out}")
    return 0


def _beside_model(args: argparse.Namespace, name: str) -> Path | None:
    """Where results go: as `--out` says, beside the model, here for one of the Hub; None for a bundled model."""
    from cocot.assets import is_bundled

    if args.out is not None or is_bundled(args.model):
        return cast(Path | None, args.out)
    return Path(args.model) / name if Path(args.model).is_dir() else Path(name)


def _how(args: argparse.Namespace, model: Any, tokenizer: Any, chosen: Selection) -> str:
    """What decides the numbers, in one line."""
    from cocot.evaluation.evaluate import longest_answer
    from cocot.modeling.thought_settings import thought_settings

    count = thought_settings(model).num_thoughts if args.thoughts is None else args.thoughts
    room = f"{longest_answer(chosen.problems, tokenizer)} tokens, if the context has room"
    parts = {
        "graded as": chosen.grader,
        "thoughts": "as in the table" if args.ablations else count,
        "decoding": "as generation_config.json says" if args.use_generation_config else "greedy",
        "longest answer": room if args.max_new_tokens is None else f"{args.max_new_tokens} tokens",
        "problems": chosen.source,
    }
    return "; ".join(f"{name}: {value}" for name, value in parts.items())


def _ask(args: argparse.Namespace) -> int:
    from transformers import TextStreamer

    from cocot.modeling.generation import answer
    from cocot.modeling.loading import load_here

    if args.text_steps and args.thoughts:
        raise ConfigError("--text-steps means no thoughts; leave --thoughts out.")
    _silence_libraries()
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
    return 0


def _probe(args: argparse.Namespace) -> int:
    from cocot.interpret.search_tree import probe_search
    from cocot.interpret.terminal import describe, draw_tree
    from cocot.modeling.loading import load_here
    from cocot.system.files import must_be_writable

    _silence_libraries()
    chosen = _select(args)
    task, problems = chosen.task, chosen.problems
    if args.show is not None and not 0 <= args.show < len(problems):
        raise ConfigError(f"--show {args.show}: the problems are 0 to {len(problems) - 1}.")
    out = _beside_model(args, "search")
    if out is not None:
        must_be_writable(out / "search.json")
    model, tokenizer = load_here(args.model)
    search = probe_search(
        model,
        tokenizer,
        task,
        problems,
        num_thoughts=args.thoughts,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
    )
    if out is not None:
        search.write(out)
    print(f"{describe(search)}\n")
    if args.show is not None:
        draw_tree(search, args.show)
    print(f"search: {out or _UNWRITTEN}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from cocot.assets import is_bundled, locate

    runs = [Path(locate(run)) for run in args.runs]
    if args.out is None and is_bundled(runs[0]):
        raise ConfigError(f"{args.runs[0]} comes with cocot, and nothing is written there; say where to with --out.")
    print(f"page: {_write_page(runs, args.out or runs[0] / PAGE)}")
    return 0


def _write_page(folders: Sequence[Path], out: Path) -> Path:
    try:
        from cocot.experiments.html_report import write_page
        from cocot.system.files import must_be_writable
    except ImportError as error:
        raise ConfigError(f"the page takes the extra `report`: pip install 'cocot[report]' ({error}).") from error
    must_be_writable(out)
    write_page(folders, out)
    return out


def _export(args: argparse.Namespace) -> int:
    from cocot.modeling.loading import load_here
    from cocot.serving.export import export, write_embeddings

    names = ("thoughts", "data", "task", *_GENERATOR)
    if not args.embeds and (given := [f"--{name}" for name in names if getattr(args, name) is not None]):
        raise ConfigError(f"--thoughts and problems go with --embeds; leave {', '.join(given)} out.")
    _silence_libraries()
    if args.embeds:
        problems = _select(args).problems
        write_embeddings(*load_here(args.model), problems, args.folder, args.thoughts)
        print(f"{len(problems):,} prompts: {args.folder}")
        return 0
    export(args.model, args.folder)
    print(f"model: {args.folder}\nserve it with: transformers serve {args.folder} --trust-remote-code")
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

    from cocot.bench.measure import machine
    from cocot.bench.ratios import Bench, measure
    from cocot.bench.workload import SHAPES
    from cocot.settings.typed import choose

    shapes = tuple(args.shapes.split(","))
    if unknown := set(shapes) - set(SHAPES):
        raise ConfigError(f"--shapes names {sorted(unknown)[0]!r}; {choose(sorted(unknown)[0], SHAPES)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; leave it out to measure on the CPU.")
    _silence_libraries()
    ratios: dict[str, float] = {}
    for ratio in measure(Bench(device, args.rounds, shapes, args.batch_size)):
        verdict = "" if ratio.goal is None else f"goal {ratio.goal:.2f} {'' if ratio.value <= ratio.goal else 'MISSED'}"
        print(f"{ratio.name:<36}{ratio.value:6.3f}  {verdict:<17} {ratio.detail}", flush=True)
        ratios[ratio.name] = round(ratio.value, 4)
    print(json.dumps({"ratios": ratios, "machine": machine(device)}))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from cocot.training.recipes import describe_fields, read_recipe, shipped_recipes

    if args.fields:
        print(describe_fields())
        return 0
    for name in shipped_recipes():
        config = read_recipe(name)
        print(f"{name}\n  cost:   {config.cost or 'not measured yet'}\n  result: {config.result or 'not measured yet'}")
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
    "data": _data,
    "bench": _bench,
    "recipes": _recipes,
    "env": _env,
}
