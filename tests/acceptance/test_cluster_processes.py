"""Other ways to start the processes: without any server on one host, and by Celery's own commands."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from storage import embedded_postgres
from tests.acceptance.cluster import PROMPT, QUICK, Cluster, open_cluster, read_prompts, text_of, until
from tests.services.ports import free_ports
from tests.stub_llm import StubLLM, answer_to

ROWS = 200


@pytest.fixture(name="cluster_on_files")
def _cluster_on_files(tmp_path: Path) -> Iterator[Cluster]:
    """No server anywhere: a private database, folders for objects and messages."""
    home = tmp_path / "home"
    try:
        with open_cluster({**os.environ, **QUICK, "SYNTHGEN_HOME": str(home)}, tmp_path) as opened:
            yield opened
    finally:
        embedded_postgres.stop(home)


def test_submit_and_workers_on_one_host_need_no_server(
    cluster_on_files: Cluster, stub: StubLLM, questions: Callable[[int], Path]
) -> None:
    cluster, source = cluster_on_files, questions(ROWS)
    stub.latency = 0.1
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 20)
    victim, _ = cluster.workers(2, "--base-url", stub.url, "--in-flight", 8, "--shards", 2)
    cluster.wait_for_answers(batch, 40)

    victim.kill()  # its messages die with it
    cluster.wait(batch)

    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(p) for p in read_prompts(source)]


def test_plain_celery_runs_workers_and_beat_and_flower_shows_them(cluster: Cluster, gsm8k: Path) -> None:
    (port,) = free_ports(1)
    variables = {"SYNTHGEN_POOL": cluster.pool, "SYNTHGEN_ENGINE": "mock", "FLOWER_UNAUTHENTICATED_API": "true"}
    flower = cluster.celery("flower", "flower", f"--port={port}", "--address=127.0.0.1", **variables)
    worker = cluster.celery("worker", "worker", "--hostname=plain@%h", "--loglevel=INFO", **variables)
    worker.says("ready: pool=")
    flower.says("Visit me")
    beat = cluster.celery("beat", "beat", **variables)

    batch = cluster.submit(gsm8k, *PROMPT)

    assert cluster.wait(batch).counts.succeeded == 1_319
    names = until("Flower shows the worker", lambda: list(read_json(port, "workers?refresh=1")))
    assert [name.partition("@")[0] for name in names] == ["plain"]
    until("beat has had upkeep done", lambda: has_succeeded(read_json(port, "tasks?taskname=synthgen.upkeep")))
    until("Flower shows shards", lambda: has_succeeded(read_json(port, "tasks?taskname=synthgen.run_shard")))
    assert "Traceback" not in worker.log + beat.log


def test_a_worker_that_comes_later_takes_what_a_busy_one_holds(
    cluster: Cluster, questions: Callable[[int], Path]
) -> None:
    slow = ("--engine", "mock", "--engine-option", "latency=1", "--in-flight", 1, "--shards", 1)
    unhurried = {"SYNTHGEN_RESEND_AFTER": "600"}
    cluster.worker(*slow, **unhurried)
    batch = cluster.submit(questions(40), *PROMPT, "--shard-requests", 20, **unhurried)
    cluster.wait_for_answers(batch, 2)  # it runs the first shard and holds the message of the second

    cluster.worker(*slow, **unhurried)

    until("both shards run", lambda: len(cluster.services.store.owners()) == 2, timeout=12)
    assert cluster.wait(batch).counts.succeeded == 40


def test_a_worker_that_is_shut_down_from_afar_hands_its_shards_back(
    cluster: Cluster, questions: Callable[[int], Path]
) -> None:
    slow = ("--engine", "mock", "--engine-option", "latency=1", "--in-flight", 1, "--shards", 1)
    worker = cluster.worker(*slow)
    batch = cluster.submit(questions(100), *PROMPT, "--shard-requests", 50)
    cluster.wait_for_answers(batch, 1)

    cluster.celery("shutdown", "control", "shutdown")  # what Flower's button does

    assert worker.ends() == 0
    assert cluster.services.store.owners() == []
    assert "shard given back" in worker.log


def read_json(port: int, path: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as reply:
            return orjson.loads(reply.read())
    except (urllib.error.HTTPError, TimeoutError):
        return {}


def has_succeeded(tasks: dict[str, Any]) -> bool:
    return any(task["state"] == "SUCCESS" for task in tasks.values())
