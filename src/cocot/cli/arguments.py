"""The arguments of every command: `cocot train | eval | ask | probe | compare | reproduce | report | export | ...`.

In: nothing. Out: a parser; `command` of what it parses is the name of the command.
Read next: `cli/commands.py`, which runs them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from cocot.assets import bundled_models
from cocot.errors import ConfigError
from cocot.version import __version__

_MOST = 10_000_000
_MODEL = (
    f"run folder, model folder, hub id, or the name of a model that comes with cocot: {', '.join(bundled_models())}"
)
_EPILOG = "A recipe's settings are overridden by name: cocot train demo --train.learning_rate 1e-4"


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of ours: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint, with the nearest choice where there are some."""
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            near = get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{' '.join(message.split())} (see `{self.prog} --help`)")


def _whole(low: int | None = None, high: int | None = _MOST) -> Callable[[str], int]:
    """The type of a whole number within bounds; None for no bound."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number") from None
        if low is not None and value < low:
            raise argparse.ArgumentTypeError(f"{text[:80]} is too small; it must be at least {low}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text[:80]} is too large; it must be at most {high}")
        return value

    return read


_POSITIVE, _COUNT, _ANY = _whole(1), _whole(0), _whole(None, None)
_SIZE = _whole(1, 10_000)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="cocot", description="Language models that reason in a continuous latent space.", epilog=_EPILOG
    )
    parser.add_argument(
        "--version", action="version", version=f"cocot {__version__}", help="print the version, and stop"
    )
    parser.set_defaults(takes_overrides=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, **defaults: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=name, **defaults)
        return sub

    sub = add("train", "train a model by a recipe, or resume a run that was stopped", takes_overrides=True)
    sub.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    sub.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
    sub.add_argument("--shares-with", type=Path, help="another method's run: stages that are the same work are copied")
    sub.add_argument("--until-eof", action="store_true", help="stop, as by Ctrl-C, when standard input ends")
    sub.add_argument("--dry-run", action="store_true", help="print the schedule and one encoded problem; train nothing")
    sub.epilog = (
        "Every field of the recipe can follow: --curriculum.method cot --seed 1 (see `cocot recipes --fields`)."
    )

    sub = add(
        "compare",
        "train several methods by one recipe, and evaluate them on the same problems",
        takes_overrides=True,
    )
    sub.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    sub.add_argument("--methods", default="cot,no_cot,pause_as_thought,coconut", help="methods, with commas between")
    sub.add_argument(
        "--problems", type=_POSITIVE, default=1000, help="fresh problems to evaluate on (default: %(default)s)"
    )
    sub.add_argument("--data", type=Path, help="file of problems to evaluate on, besides fresh ones")
    sub.add_argument(
        "--jobs", type=_POSITIVE, help="trainings at a time (default: 1; on a cluster as many as it has room for)"
    )
    _add_comparison_arguments(sub)
    _add_cluster_arguments(sub)
    sub.add_argument("--out", type=Path, help="folder (default: runs/RECIPE)")

    sub = add(
        "reproduce",
        "make a table of results: the paper's, or one of our own studies",
        takes_overrides=True,
    )
    sub.add_argument("study", help="prosqa, prontoqa, gsm8k (the paper's Table 1), methods, depth or mixing")
    sub.add_argument("--scale", help="scale, such as demo, cpu or gpu; a wrong name lists all (default: the first)")
    sub.add_argument("--methods", help="methods, with commas between (default: all of the study)")
    sub.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="other values of an axis of the study, with commas between: --axis layers=2,4 --axis hops=2",
    )
    sub.add_argument(
        "--seeds", type=_POSITIVE, default=1, help="trainings a method, seeds 0, 1, ... (default: %(default)s)"
    )
    sub.add_argument("--problems", type=_POSITIVE, help="problems a test set (default: as the study says)")
    sub.add_argument("--data", type=Path, help="file of problems, as a further test set")
    sub.add_argument("--jobs", type=_POSITIVE, help="trainings at a time (default: one for each core on a CPU, else 1)")
    sub.add_argument(
        "--dry-run", action="store_true", help="print the plan, with times measured in a pilot run, and stop"
    )
    _add_comparison_arguments(sub)
    _add_cluster_arguments(sub)
    sub.add_argument("--out", type=Path, help="folder (default: runs/STUDY_SCALE)")

    sub = add("eval", "accuracy, tokens and seconds of a model")
    sub.add_argument("model", help=_MODEL)
    _add_task_argument(sub)
    sub.add_argument("--thoughts", type=_COUNT, help="thoughts before the answer (default: as trained)")
    sub.add_argument(
        "--ablations",
        "--controls",
        action="store_true",
        help="also with other thoughts, and with fewer: do they matter?",
    )
    sub.add_argument("--batch-size", type=_POSITIVE, default=32)
    sub.add_argument(
        "--max-new-tokens",
        type=_POSITIVE,
        help="longest answer (default: as long as the longest written solution, with head room, at least 256)",
    )
    sub.add_argument(
        "--use-generation-config",
        action="store_true",
        help="decode as the model's generation_config.json says (default: greedily, whatever it says)",
    )
    sub.add_argument(
        "--out", type=Path, help="JSONL file of one record a problem (default: eval.jsonl beside the model)"
    )
    _add_problem_arguments(sub, count=1000)

    sub = add("ask", "answer a question")
    sub.add_argument("model", help=_MODEL)
    sub.add_argument("question")
    sub.add_argument("--thoughts", type=_COUNT, help="thoughts before the answer (default: as trained)")
    sub.add_argument("--text-steps", action="store_true", help="write the chain in words: no thoughts")
    sub.add_argument("--max-new-tokens", type=_POSITIVE, help="longest answer (default: what the context has room for)")
    sub.add_argument(
        "--read-thoughts",
        type=_POSITIVE,
        nargs="?",
        const=1,
        metavar="C",
        help="also write what each C thoughts say, read alone (1 if left out); sim_cot trains a model to do so",
    )

    sub = add("probe", "what a model thinks of every node of a search, thought by thought")
    sub.add_argument("model", help=_MODEL)
    _add_task_argument(sub)
    sub.add_argument("--thoughts", type=_COUNT, help="most thoughts (default: as trained)")
    sub.add_argument("--batch-size", type=_POSITIVE, default=32)
    sub.add_argument("--max-new-tokens", type=_POSITIVE, help="longest text after the thoughts (default: as eval)")
    sub.add_argument("--out", type=Path, help="folder to write (default: search/ beside the model)")
    sub.add_argument("--show", type=_COUNT, metavar="ID", help="draw the search tree of this problem, from 0")
    _add_problem_arguments(sub, count=200)

    sub = add("report", "write one HTML page about runs: tables, figures, the search tree to play with")
    sub.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of compare and reproduce")
    sub.add_argument("--out", type=Path, help="the file (default: report.html in the first folder)")

    sub = add("export", "write a folder that thinks without cocot: generate, pipeline, transformers serve")
    sub.add_argument("model", help=_MODEL)
    sub.add_argument("folder", type=Path, help="folder to write, new or empty")
    embeds = sub.add_argument_group("prompt embeddings")
    embeds.add_argument("--embeds", action="store_true", help="write questions and thoughts as embeddings instead")
    embeds.add_argument("--thoughts", type=_COUNT, help="thoughts a question (default: as trained)")
    _add_task_argument(sub)
    _add_problem_arguments(sub, count=100)

    sub = add("serve", "serve a model behind OpenAI's API on this machine")
    sub.add_argument("model", help=_MODEL)
    sub.add_argument("--name", help="what clients call it (default: the last part of MODEL)")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    sub.add_argument("--port", type=_COUNT, default=8000, help="port to listen at; 0: any (default: %(default)s)")
    limits = sub.add_argument_group("limits")
    limits.add_argument("--max-new-tokens", type=_POSITIVE, default=256, help="longest answer (default: %(default)s)")
    limits.add_argument("--max-thoughts", type=_COUNT, default=64, help="most thoughts (default: %(default)s)")
    limits.add_argument("--batch-size", type=_POSITIVE, default=32, help="most in a batch (default: %(default)s)")
    limits.add_argument("--queue", type=_POSITIVE, default=256, help="most that wait (default: %(default)s)")

    sub = add("data", "make problems, with their statistics")
    sub.add_argument("task", help="prosqa, prontoqa or gsm8k")
    sub.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    _add_problem_arguments(sub, count=1000)

    sub = add("bench", "measure speed and memory as ratios; the last line is JSON")
    sub.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda (default: %(default)s)")
    sub.add_argument(
        "--rounds", type=_POSITIVE, default=3, help="pairs a ratio; the median counts (default: %(default)s)"
    )
    sub.add_argument("--shapes", default="small,124m", help="models, with commas between (default: %(default)s)")
    sub.add_argument("--batch-size", type=_POSITIVE, help="rows a training step (default: what suits the device)")

    sub = add("recipes", "list the shipped recipes with cost and result, and the methods")
    sub.add_argument("--fields", action="store_true", help="print every field of a recipe instead")
    add("env", "print versions and machine, for bug reports")
    return parser


def _add_task_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help="prosqa, prontoqa or gsm8k (default: what the model was trained for)")


def _add_problem_arguments(parser: argparse.ArgumentParser, count: int) -> None:
    """Where problems come from: a file, or the task's generator."""
    source = parser.add_argument_group("problems")
    source.add_argument(
        "--data",
        type=Path,
        help="file of problems, or hub:NAME:SPLIT (default: the run's validation file, else generated ones)",
    )
    source.add_argument(
        "-n", "--count", type=_POSITIVE, default=count, help="how many to generate (default: %(default)s)"
    )
    source.add_argument("--seed", type=_ANY, default=1_000_000, help="seed of the generator (default: %(default)s)")
    source.add_argument("--mode", help="prosqa: released, paper or balanced; prontoqa: released or balanced")
    source.add_argument(
        "--rendering",
        help="prosqa and prontoqa: sentences or symbolic; with --data, prosqa alone",
    )
    source.add_argument("--layers", type=_SIZE, nargs="+", help="prosqa balanced: layers under each root")
    source.add_argument("--width", type=_SIZE, help="prosqa balanced: nodes a layer")
    source.add_argument("--nodes", type=_SIZE, help="prosqa balanced: nodes in all")
    source.add_argument("--parents", type=_SIZE, nargs="+", help="prosqa balanced: in-edges of a node")
    source.add_argument("--ids", type=_SIZE, nargs="+", help="prosqa released (with --hops) and paper: nodes to grow")
    source.add_argument("--symbols", type=_SIZE, help="prosqa symbolic: numbers that names are drawn from")
    source.add_argument("--questions", type=_SIZE, help="prosqa: questions about each graph")
    source.add_argument("--hops", type=_SIZE, nargs="+", help="prosqa: steps to the target; prontoqa: rules of a proof")
    source.add_argument("--steps", type=_SIZE, nargs="+", help="gsm8k: equations a problem, 1 to 6")
    source.add_argument("--largest", type=_POSITIVE, help="gsm8k: the largest number that a question names")


def _add_comparison_arguments(sub: argparse.ArgumentParser) -> None:
    """What makes a comparison of methods fair."""
    sub.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="SETTING=VALUES",
        help="train every row with each of these values and one seed, and keep what is best on validation problems: "
        "--search train.learning_rate=1e-3,3e-3 (several: every combination)",
    )
    sub.add_argument(
        "--equal-compute",
        action="store_true",
        help="also train each method on as many problems as cost what Coconut's training costs",
    )


def _add_cluster_arguments(sub: argparse.ArgumentParser) -> None:
    """Where the trainings run."""
    cluster = sub.add_argument_group("on a cluster")
    cluster.add_argument("--on", choices=("ray", "slurm"), help="cluster to train on (default: this machine)")
    cluster.add_argument("--cores", type=_POSITIVE, help="CPU cores of a training (default: 1)")
    cluster.add_argument("--gpus", type=_COUNT, help="GPUs of a training (default: 0)")
