"""The run folder: what a run leaves on disk, and how it is found again.

    config.yaml      the resolved recipe          run.json       versions, commit, seed, data fingerprint
    state.json       finished stages              metrics.jsonl  every log entry
    stages/<name>/checkpoint-<step>/              best/          the last stage's best model so far
    model/           the result: a plain Hugging Face folder

Files are written as `system/files.py` does it, so a kill leaves the old one or the new one. A checkpoint folder
counts only once it has its manifest, `checksums.json`; a corrupted one is never loaded.
Read next: `training/run.py`, which fills it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cocot.display.html import block, heading, table
from cocot.errors import ConfigError, RunError
from cocot.modeling.config import RESULT
from cocot.settings.typed import build, check_numbers, number, short
from cocot.system.files import REPAIR, is_unfinished, new_folder, read_json, write_json, write_text
from cocot.system.launch import world_size
from cocot.system.manifest import check
from cocot.tasks.problem import Problem
from cocot.tasks.problem_table import lines_of
from cocot.training.config import RunConfig
from cocot.training.recipes import read_recipe
from cocot.training.training_curve import training_curve

_LOGGER = logging.getLogger("cocot")
_NOTES = {"cost": "", "result": ""}
"""What a recipe says of itself to people: no part of what a run depends on."""
_PACKAGES = ("cocot", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
_EXTRAS = ("peft",)
_ABSENT = "not installed"


@dataclass(frozen=True)
class _FinishedStage:
    """An entry of state.json; `checkpoint` is relative to the run folder."""

    name: str
    epochs: int = number(0, low=0)
    accuracy: float = number(0.0, low=0, high=1)
    cut: float = number(0, low=0)
    checkpoint: str = ""

    def __post_init__(self) -> None:
        check_numbers(self, "finished_stages")
        path = Path(self.checkpoint)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"the checkpoint {short(self.checkpoint)} lies outside the run folder.")


@dataclass(frozen=True)
class _State:
    """What state.json holds."""

    finished_stages: list[_FinishedStage]


CONFIG = "config.yaml"
_BEST, _STAGES, _LOCK = "best", "stages", "lock"


class RunFolder:
    """One run's folder: a path, wherever one is asked for; a notebook shows its training curve."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG
        self.about = self.path / "run.json"
        self.state = self.path / "state.json"
        self.model = self.path / RESULT
        self.best = self.path / _BEST
        self.metrics = self.path / "metrics.jsonl"
        self.log_file = self.path.with_name(f"{self.path.name}.log")  # what a process that trains here prints
        self._lock = FileLock(self.path / _LOCK, blocking=False, thread_local=False)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """For notebooks: the stages that are done, and the course of the training so far."""
        state = "finished" if self.model.exists() else "not finished; the same call of cocot.train resumes it"
        rows = [("stage", "epochs", "validation accuracy")]
        rows += [(one["name"], str(one["epochs"]), f"{one['accuracy']:.1%}") for one in self.finished_stages()]
        return block(heading(f"{self.path}: {state}"), table(rows), training_curve(self.read_log()).to_html())

    def open(self, config: RunConfig) -> None:
        """Make the folder, or take up the run that lies in it.

        Raises:
            RunError: the folder belongs to a run with other settings (the message lists them), or is in use.
        """
        if not self.config.exists() and self.path.exists() and not all(map(_is_of_a_beginning, self.path.iterdir())):
            raise RunError(f"{self.path} is not empty and holds no run. Choose another --out folder.")
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._take_lock():
            raise RunError(f"another process is training in {self.path}; wait for it, or stop it.")
        try:
            self._agree_on(json.loads(json.dumps(asdict(config))))
        except BaseException:
            self.close()
            raise

    def _agree_on(self, resolved: dict[str, Any]) -> None:
        """Write the settings down, or find them there."""
        if not self.config.exists():
            write_text(self.config, yaml.safe_dump(resolved, sort_keys=False))
            return
        known = json.loads(json.dumps(asdict(self.read_config())))  # settings it knew not have defaults
        if difference := _difference({**known, **_NOTES}, {**resolved, **_NOTES}):
            raise RunError(
                f"{self.path} belongs to another run: {'; '.join(difference)}. "
                "Choose another --out folder, or go back to the settings of this one."
            )

    def read_config(self) -> RunConfig:
        """The run's resolved recipe.

        Raises:
            RunError: `config.yaml` is not there, is corrupted, or a newer version of cocot wrote it.
        """
        if not self.config.is_file():
            raise RunError(f"{self.path} is no run folder: it has no config.yaml.")
        try:
            return read_recipe(str(self.config))
        except ConfigError as error:
            raise RunError(f"{self.config} is corrupted, or of a newer version of cocot: {error}") from error

    def is_free(self) -> bool:
        """Whether no process is training here."""
        if not (self.path / _LOCK).exists():
            return True
        is_free = self._take_lock()
        self.close()
        return is_free

    def _take_lock(self) -> bool:
        """Whether we have it now; the operating system gives it back when this process ends, even by a kill."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        self._opened = os.stat(self.path / _LOCK)
        return True

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def must_be_in_place(self) -> None:
        """Refuse to write on where this run's folder was: what would be left is neither the old run nor a new one.

        Raises:
            RunError: somebody removed, moved or replaced the folder since it was opened.
        """
        if not self._lock.is_locked:
            return
        try:
            is_in_place = os.path.samestat(self._opened, os.stat(self.path / _LOCK))
        except FileNotFoundError:
            is_in_place = False
        if not is_in_place:
            raise RunError(
                f"{self.path} was removed or moved while the run was training there. Put it back to resume, or start "
                "the run again."
            )

    def describe(self, config: RunConfig, fingerprint: str) -> None:
        """Write down where the run's numbers come from.

        Raises:
            RunError: the run was begun on other data.
        """
        file = self.about
        if file.exists():
            known = str(read_json(file, "data_fingerprint")["data_fingerprint"])
            if known != fingerprint:
                raise RunError(
                    f"{self.path} was begun on other data (fingerprint {known[:12]}, now {fingerprint[:12]}). "
                    "Put the old data back, or choose another --out folder."
                )
            return
        num_processes = world_size()
        about = {"seed": config.seed, "data_fingerprint": fingerprint, "num_processes": num_processes}
        write_json(file, {**about, **environment()})

    def finished_stages(self) -> list[dict[str, Any]]:
        """The stages that are done, in order: name, epochs, accuracy, checkpoint (relative to the folder)."""
        file = self.state
        if not file.exists():
            return []
        try:
            return [asdict(entry) for entry in build(_State, read_json(file)).finished_stages]
        except ConfigError as error:
            raise RunError(f"{file} is corrupted, or of a newer version of cocot: {error} {REPAIR}") from error

    def validation_accuracy(self) -> float:
        """That of the best model of the last stage that is done, which is what a run ends with; 0 without any."""
        stages = self.finished_stages()
        if not stages:
            return 0.0
        own = [entry for entry in self.read_log() if entry["stage"] == stages[-1]["name"] and entry["step"] > 0]
        found = (entry["eval_accuracy"] for entry in own if "eval_accuracy" in entry)
        return float(max(found, default=stages[-1]["accuracy"]))

    def finish_stage(self, entry: dict[str, Any]) -> None:
        """Append a stage to those that are done."""
        write_json(self.state, {"finished_stages": [*self.finished_stages(), entry]})

    def copy_stages(self, other: RunFolder, count: int) -> None:
        """Take over the first `count` stages of another run, if they are done there and not here."""
        for entry in other.finished_stages()[len(self.finished_stages()) : count]:
            check(other.path / entry["checkpoint"])
            with new_folder(self.path / entry["checkpoint"]) as checkpoint:
                shutil.copytree(other.path / entry["checkpoint"], checkpoint, dirs_exist_ok=True)
            self.truncate_log(entry["name"], -1)  # if the last try was killed here
            for logged in other.read_log():
                if logged["stage"] == entry["name"]:
                    self.log(logged)
            self.finish_stage(entry)

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / _STAGES / name

    def log(self, entry: dict[str, Any]) -> None:
        """Append an entry to metrics.jsonl.

        Raises:
            RunError: the folder is no longer there.
        """
        self.must_be_in_place()
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl; a last line that a kill cut off is left out.

        Raises:
            RunError: another line is no entry.
        """
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.exists() else []
        entries = [_entry(line) for line in lines]
        if None in entries[:-1]:
            raise RunError(f"{self.metrics}: line {entries.index(None) + 1} is no log entry. {REPAIR}")
        return [entry for entry in entries if entry is not None]

    def truncate_log(self, stage: str, step: int) -> None:
        """Drop the entries of `stage` after `step`: a resumed run will log them again."""
        kept = [entry for entry in self.read_log() if entry["stage"] != stage or entry["step"] <= step]
        write_text(self.metrics, "".join(f"{json.dumps(entry)}\n" for entry in kept))


def run_of(model: Path) -> RunFolder | None:
    """The run that a model belongs to: its run folder, or the one around a folder of its models."""
    places = [model]
    if model.name in (RESULT, _BEST):
        places.append(model.parent)
    if len(model.parents) > 2 and model.parents[1].name == _STAGES:
        places.append(model.parents[2])
    return next((run for run in map(RunFolder, places) if run.config.is_file()), None)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_entry = isinstance(entry, dict) and isinstance(entry.get("stage"), str) and isinstance(entry.get("step"), int)
    return entry if is_entry else None


def _is_of_a_beginning(path: Path) -> bool:
    """Whether a path in a run folder is what a run leaves that was stopped before its settings were written down."""
    return path.name == _LOCK or is_unfinished(path)


def fingerprint(*parts: Sequence[Problem]) -> str:
    """The sha256 of problems, in order."""
    digest = hashlib.sha256()
    for line in chain.from_iterable(map(lines_of, parts)):
        digest.update(line.encode())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Versions, machine and commit: the block for bug reports."""
    return {
        "versions": {name: _version(name) for name in _PACKAGES} | _installed(_EXTRAS),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _installed(packages: Iterable[str]) -> dict[str, str]:
    return {name: version for name in packages if (version := _version(name)) != _ABSENT}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def _commit() -> str | None:
    """The commit of the source, with `+` for uncommitted changes; None for an installed package."""
    here = Path(__file__).parent
    call = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
        )
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if tracked.returncode == 0 and done.returncode == 0 else None


def _difference(old: Any, new: Any, path: str = "") -> list[str]:
    """The settings in which two resolved configs differ, as `path: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        pairs = ((name, f"{path}.{name}" if path else name) for name in names)
        return [line for name, sub in pairs for line in _difference(old.get(name), new.get(name), sub)]
    return [] if old == new else [f"{path} was {old!r}, is now {new!r}"]
