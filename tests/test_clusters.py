"""Tests of trainings on a cluster: a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs_support import environment, tiny_config, weights, write_recipe

from cocot.cli import main
from cocot.errors import RunError
from cocot.experiments import clusters
from cocot.experiments.clusters import Listing, Ray, Share
from cocot.experiments.jobs import Training
from cocot.training.run_folder import RunFolder

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that trains nothing; tests add nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment() | {"RAY_USAGE_STATS_ENABLED": "0"}).items():
            patch.setenv(name, value)
        # 0: any free port, since another cluster may run, or just have ended, on this machine
        dashboard = {"include_dashboard": True, "dashboard_port": 0, "dashboard_agent_listen_port": 0}
        handler = signal.getsignal(signal.SIGTERM)
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **dashboard})
        signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there
        found.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", f"http://{found.head_node.webui_url}")
        yield found
        found.shutdown()
        signal.signal(signal.SIGTERM, handler)


def compare(recipe: Path, out: Path, *more: str) -> list[str]:
    """The command that trains two methods."""
    methods = ["--methods", "cot,coconut", "--problems", "4", "--out", str(out)]
    return ["compare", str(recipe), *methods, *more]


def jobs_of(cluster: Any) -> list[Any]:
    """What the cluster knows of jobs."""
    from ray.job_submission import JobSubmissionClient

    return list(JobSubmissionClient().list_jobs())


def test_a_cluster_gives_what_this_machine_gives(cluster: Any, tmp_path: Path) -> None:
    """The same weights, bit for bit, though the driver is killed and a node is lost in the middle."""
    long = {"num_train": 4000, "num_valid": 4, "fresh": True}
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data=long, train={"save_steps": 50}))
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    out, here = tmp_path / "cluster", tmp_path / "here"
    command = [sys.executable, "-m", "cocot", *compare(recipe, out, "--on", "ray")]
    said = tmp_path / "said.txt"
    with said.open("w", encoding="utf-8") as file:
        driver = subprocess.Popen(command, env=dict(os.environ), stdout=file, stderr=file)
    end = time.monotonic() + 200
    while not list(out.glob("*/stages/*/checkpoint-*")):
        assert driver.poll() is None, said.read_text(encoding="utf-8")
        assert time.monotonic() < end, [job.message for job in jobs_of(cluster)]
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    found = Ray(Share()).find(Training("cot", str(recipe), [], tiny_config(), RunFolder(out / "cot")))
    assert found is not None, "the job does not outlive the driver, or is not found again"
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    assert main(compare(recipe, out, "--on", "ray")) == 0
    assert main(compare(recipe, here)) == 0
    for method in ("cot", "coconut"):
        ours, theirs = weights(out / method), weights(here / method)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(job.submission_id.endswith("-1") for job in jobs_of(cluster)), "no job was lost and started again"


def test_a_cluster_that_refuses_jobs_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just begun takes them soon; one that does not is named; a lost answer starts nothing twice."""
    asked, known = list[str](), dict[str, Any]()

    def submit_job(submission_id: str, answers_after: int, takes: bool = False) -> None:
        asked.append(submission_id)
        if takes:
            known[submission_id] = "taken"
        if len(asked) < answers_after:
            raise RuntimeError("No available agent to submit job, please try again later.")

    found = Ray.__new__(Ray)
    found._client, found._listing = SimpleNamespace(submit_job=submit_job), Listing(lambda: known, known)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    found._submit("a", answers_after=3)
    assert len(asked) == 3
    found._submit("b", answers_after=99, takes=True)
    assert len(asked) == 4
    monkeypatch.setattr(clusters, "_WARM_UP", 0.0)
    with pytest.raises(RunError, match="does not take the job c: No available agent"):
        found._submit("c", answers_after=99)
