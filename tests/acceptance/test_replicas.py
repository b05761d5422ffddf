"""``worker --replicas``: one worker for each group of GPUs, all started, watched and ended by one command."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.cluster import PROMPT, Cluster, Process, until


@pytest.fixture(name="replicas")
def _replicas(cluster: Cluster) -> Iterator[Process]:
    """Two of them, with the mock engine."""
    options = ("--engine", "mock", "--engine-option", "latency=0.2", "--in-flight", "32")
    supervisor = cluster.worker("--replicas", "2", "--gpus-per-replica", "2", *options, ready=False)
    until("both are ready", lambda: supervisor.log.count("ready: pool=") == 2)
    workers = workers_of(supervisor)
    yield supervisor
    for worker in workers:
        if worker.is_running():
            worker.kill()


def workers_of(supervisor: Process) -> list[psutil.Process]:
    return psutil.Process(supervisor.pid).children()


def test_two_workers_serve_and_each_sees_its_own_gpus(cluster: Cluster, replicas: Process, gsm8k: Path) -> None:
    workers = workers_of(replicas)
    assert sorted(worker.environ()["SYNTHGEN_GPUS"] for worker in workers) == ["0,1", "2,3"]

    batch = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 100)
    killed = workers[0]
    cluster.wait_for_answers(batch, 100)
    killed.kill()

    assert cluster.wait(batch).counts.succeeded == 1_319
    until("the killed one is back", lambda: replicas.log.count("ready: pool=") == 3)
    assert "started again in" in replicas.log
    again = workers_of(replicas)
    assert sorted(worker.environ()["SYNTHGEN_GPUS"] for worker in again) == ["0,1", "2,3"]
    assert killed.pid not in {worker.pid for worker in again}

    replicas.send(signal.SIGTERM)
    assert replicas.ends(timeout=30) == 0
    assert not any(worker.is_running() for worker in again)
    assert "Traceback" not in replicas.log


def test_the_command_ends_when_all_its_workers_have_ended_for_want_of_work(cluster: Cluster) -> None:
    supervisor = cluster.worker("--engine", "mock", "--replicas", "2", "--idle-exit", "1s", ready=False)
    assert supervisor.ends() == 0
    assert supervisor.log.count("the worker ends") == 2


def test_workers_whose_supervisor_is_killed_hand_their_shards_back_and_end(
    cluster: Cluster, replicas: Process, gsm8k: Path
) -> None:
    workers = workers_of(replicas)
    batch = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 100)
    cluster.wait_for_answers(batch, 100)
    replicas.send(signal.SIGKILL)
    until("both are gone", lambda: not any(worker.is_running() for worker in workers))
    assert replicas.log.count("the process that started this worker is gone") == 2
    assert cluster.services.store.owners() == []


def test_too_few_gpus_for_so_many_replicas_are_told(cluster: Cluster) -> None:
    server = ("--engine", "server", "--command", "serve --port {port}")
    options = (*server, "--replicas", "2", "--gpus-per-replica", "2", "--gpus", "0,1,2")
    refused = cluster.cli("worker", *options, expect=2)
    assert "2 replicas of 2 GPUs need 4, but --gpus names 3." in refused.stderr
