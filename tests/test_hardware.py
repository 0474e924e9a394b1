"""Tests of what a process may use of its machine, and of how trainings at the same time share it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from runs_support import tiny_config, write_recipe

from cocot.experiments.jobs import ThisMachine, Training, train_all
from cocot.system.hardware import allowed_cores, visible_gpus, with_gpu
from cocot.training.run_folder import RunFolder

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NO_FILE = Path("/no/such/file")


def limits(folder: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    """Control groups as Linux shows them, and the file that names the process's own."""
    for name, text in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


LIMITS = {
    "a container, version 2": ({"cpu.max": "{half}\n"}, "0::/\n"),
    "a container, version 1": (
        {"cpu/cpu.cfs_quota_us": "{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"},
        "4:cpu,cpuacct:/\n3:memory:/\n",
    ),
    "a batch job in a group": ({"slurm/job_1/cpu.max": "{half}\n"}, "0::/slurm/job_1\n"),
    "a limit on the group around": (
        {"slurm/cpu.max": "{half}\n", "slurm/job_1/cpu.max": "max 100000\n"},
        "0::/slurm/job_1\n",
    ),
}


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("cores", [0.5, 1.0, 1.5, 2.0])
def test_a_limit_on_cores_counts(tmp_path: Path, kind: str, cores: float) -> None:
    """Whole cores below the limit, at least one; never more than the process may run on."""
    files, own = LIMITS[kind]
    quota = int(cores * 100_000)
    filled = {name: text.format(half=f"{quota} 100000", quota=quota) for name, text in files.items()}
    assert allowed_cores(*limits(tmp_path, filled, own)) == min(CORES, max(1, int(cores)))


@pytest.mark.parametrize(
    ("files", "own"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n"),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n"),
        ({}, "0::/\n"),
        ({"other/cpu.max": "50000 100000\n"}, "0::/mine\n"),
        ({"cpu.max": "99900000 100000\n"}, "0::/\n"),
    ],
)
def test_no_limit_is_no_limit(tmp_path: Path, files: dict[str, str], own: str) -> None:
    """Nor is that of another group, one above what there is, or a machine without such files."""
    assert allowed_cores(*limits(tmp_path, files, own)) == CORES
    assert allowed_cores(NO_FILE, NO_FILE) == CORES


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes to cores")
def test_a_process_that_is_pinned_counts_its_own_cores() -> None:
    """As Slurm and taskset pin them."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowed_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


UUIDS = "GPU-5f1a, MIG-77c2"


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, []),
        (0, "", []),
        (0, "0,1", []),
        (3, None, ["0", "1", "2"]),
        (2, "6,3", ["6", "3"]),
        (2, UUIDS, ["GPU-5f1a", "MIG-77c2"]),
        (1, "5,-1,2", ["5"]),  # CUDA sees none after a number that there is not
    ],
)
def test_gpus_keep_the_names_that_the_environment_gives_them(
    count: int, visible: str | None, expected: list[str]
) -> None:
    """Numbers or UUIDs; and only as many as PyTorch sees."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(count, environment) == expected


def test_a_slot_sees_one_gpu() -> None:
    """Slots beyond the last GPU share from the first; without GPUs nothing changes."""
    seen = [with_gpu({"A": "1"}, ["6", "3"], slot) for slot in range(5)]
    assert [found["CUDA_VISIBLE_DEVICES"] for found in seen] == ["6", "3", "6", "3", "6"]
    assert all(found["A"] == "1" for found in seen)
    assert with_gpu({"A": "1"}, [], 3) == {"A": "1"}


NOTE = """
import os, sys, time
if "--until-eof" in sys.orig_argv:
    name = os.path.basename(sys.orig_argv[sys.orig_argv.index("--out") + 1])
    with open(os.path.join(os.environ["NOTES"], name), "w") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    time.sleep(float(os.environ["SECONDS_" + name]))
    os._exit(0)
"""
"""Python runs this file first: a `cocot train` writes down the GPU that it sees, stays a while, and ends."""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("device", "visible", "jobs", "seconds", "expected"),
    [
        (None, None, 3, (3, 0, 3, 0), ["0", "1", "0", "1"]),
        (None, UUIDS, 2, (3, 0, 0, 0), ["GPU-5f1a", "MIG-77c2", "MIG-77c2", "MIG-77c2"]),
        ("cpu", None, 2, (0, 0, 0, 0), ["none"] * 4),
    ],
)
def test_each_training_gets_the_gpu_of_its_slot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    visible: str | None,
    jobs: int,
    seconds: tuple[int, ...],
    expected: list[str],
) -> None:
    """Real processes on a machine of two GPUs: a training that ends hands its GPU to the next, not to one beside it."""
    (tmp_path / "sitecustomize.py").write_text(NOTE)
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = tiny_config(train={"device": device})
    recipe = str(write_recipe(tmp_path / "mine.yaml", config))
    names = ["one", "two", "three", "four"]
    for name, stays in zip(names, seconds, strict=True):
        monkeypatch.setenv(f"SECONDS_{name}", str(stays))
    train_all([Training(name, recipe, [], config, RunFolder(tmp_path / name)) for name in names], ThisMachine(jobs))
    seen = [(tmp_path / "notes" / name).read_text() for name in names]
    assert seen == expected
