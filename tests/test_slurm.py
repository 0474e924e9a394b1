"""Tests of trainings on a Slurm cluster: a real one of one node, on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from runs_support import environment, tiny_config, weights, write_recipe
from slurm_on_this_machine import SlurmOnThisMachine, is_there
from test_clusters import compare

from cocot.cli import main
from cocot.errors import ConfigError
from cocot.experiments.clusters import Share
from cocot.experiments.jobs import Training
from cocot.experiments.slurm import Slurm
from cocot.training.run_folder import RunFolder

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'cocot[slurm]'")
needs_slurm = pytest.mark.skipif(not is_there(), reason="Slurm is not installed: apt-get install slurm-wlm munge")
LONG = {"num_train": 4000, "num_valid": 4, "fresh": True}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmOnThisMachine]:
    """A cluster that Slurm's commands find."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment() | {"SLURM_CONF": str(folder / "slurm.conf")}).items():
            patch.setenv(name, value)
        try:
            found = SlurmOnThisMachine(folder)
        except TimeoutError as error:
            pytest.skip(f"Slurm does not start on this machine: {error}")
        yield found
        found.stop()
    shutil.rmtree(folder)


def wait_for(what: Callable[[], object], said: Path, seconds: float = 200) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, said.read_text(encoding="utf-8")[-500:]
        time.sleep(0.1)


def start(command: list[str], said: Path) -> subprocess.Popen[bytes]:
    """A driver in a process of its own."""
    with said.open("a", encoding="utf-8") as file:
        words = [sys.executable, "-m", "cocot", *command]
        return subprocess.Popen(words, env=dict(os.environ), stdout=file, stderr=file)


def checkpoints(run: Path) -> int:
    """The largest step of a run's checkpoints, of all stages together."""
    return sum(int(path.name.split("-")[1]) for path in run.glob("stages/*/checkpoint-*"))


@needs_slurm
@pytest.mark.slow
@pytest.mark.distributed
def test_slurm_gives_what_this_machine_gives(cluster: SlurmOnThisMachine, tmp_path: Path) -> None:
    """The same weights, bit for bit, though the driver is killed, a job's time ends and its node is lost."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data=LONG, train={"save_steps": 50}))
    out, here, said = tmp_path / "cluster", tmp_path / "here", tmp_path / "said.txt"
    command = compare(recipe, out, "--on", "slurm")
    driver = start(command, said)
    wait_for(lambda: driver.poll() is not None or checkpoints(out / "cot"), said)
    assert driver.poll() is None, said.read_text()[-500:]
    driver.kill()
    driver.wait()
    job = Slurm(Share()).find(Training("cot", str(recipe), [], tiny_config(), RunFolder(out / "cot")))
    assert job is not None, "the job does not outlive the driver, or is not found again"
    cluster.run("scancel", "--signal=USR2", job.number)  # what Slurm sends before a job's time is over
    driver = start(command, said)
    log = out / "cot.log"
    wait_for(lambda: "stopped in" in log.read_text(), log)
    wait_for(lambda: (out / "cot" / "model").exists() and checkpoints(out / "coconut"), said)
    cluster.lose_node()
    cluster.start_node()
    assert driver.wait(timeout=300) == 0, said.read_text()[-500:] + cluster.logs()
    assert main(compare(recipe, here)) == 0
    for method in ("cot", "coconut"):
        ours, theirs = weights(out / method), weights(here / method)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(list((out / "cot.slurm").glob("*_submitted.pkl"))) == 1, "the job did not queue again under its number"


@needs_slurm
@pytest.mark.slow
@pytest.mark.distributed
def test_a_job_that_is_cancelled_stops_the_call_and_the_next_goes_on(
    cluster: SlurmOnThisMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`scancel`: the training saves its state, the driver says so in one line, and the same call starts it again."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data=LONG, train={"save_steps": 5000}))
    out, said = tmp_path / "out", tmp_path / "said.txt"
    command = [*compare(recipe, out, "--on", "slurm"), "--methods", "cot"]
    driver = start(command, said)
    wait_for(lambda: driver.poll() is not None or (out / "cot" / "metrics.jsonl").exists(), said)
    cluster.run("scancel", "--user", str(os.getuid()))
    assert driver.wait(timeout=60) == 2, said.read_text()
    assert "was stopped; the same call starts it again." in said.read_text().splitlines()[-1]
    assert checkpoints(out / "cot") > 0, "the training did not save its state"
    assert main(command) == 0
    assert (out / "cot" / "model").exists()


def test_without_slurm_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No submitit, no commands, or no cluster that answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        Slurm(Share())
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho squeue: error: Unable to contact slurm controller >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ConfigError, match="no Slurm cluster answers: squeue: error: Unable to contact"):
        Slurm(Share())
    with pytest.raises(ConfigError, match="--jobs must be at least 1"):
        Slurm(Share(), 0)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'cocot\[slurm\]'"):
        Slurm(Share())
