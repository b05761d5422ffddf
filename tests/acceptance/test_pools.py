"""Pools and models on RabbitMQ, PostgreSQL and S3: where batches go, what they wait for, workers that fail."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import orjson
import pytest

from synthgen.batch import Progress
from synthgen.ports import Services
from synthgen.results import stream_results
from synthgen.routing import waiting_for
from synthgen.workers import WorkerState, WorkerStatus
from tests.acceptance.cluster import Cluster, Process, until

_ROOT = Path(__file__).parents[2]


def opens_a_server(*models: str) -> str:
    """A command for ``--engine server``."""
    names = [word for model in models for word in ("--model", model)]
    return shlex.join([sys.executable, "-m", "tests.stub_llm", "--port", "{port}", *names])


class Town:
    """Pools of one test; their names begin with the test's own."""

    def __init__(self, cluster: Cluster, source: Path) -> None:
        self.cluster = cluster
        self.services: Services = cluster.services
        self.source = source
        # Those of tests before have been killed; their last signs of life must not draw our batches.
        until("nobody of an earlier test is live", lambda: not self.workers())

    def workers(self) -> list[WorkerStatus]:
        return [w for w in self.services.registry.workers(silent_for=3) if w.state is not WorkerState.FAILED]

    def pool(self, color: str) -> str:
        return f"{self.cluster.pool}-{color}"

    def open(self, color: str) -> Process:
        """A worker of the color's pool that serves the model of that name."""
        command = ["--engine", "server", "--command", opens_a_server(color)]
        return self.cluster.worker(*command, pool=self.pool(color), PYTHONPATH=str(_ROOT))

    def submit(self, *options: str) -> tuple[str, str]:
        """Without ``--pool``: the batch's id, and what was said."""
        scope = ["--namespace", self.cluster.pool, "--shard-requests", "5"]
        done = self.cluster.cli("submit", self.source, *scope, *options)
        return done.stdout.splitlines()[-1], done.stderr

    def wait(self, batch_id: str) -> Progress:
        progress = self.cluster.wait(batch_id)
        assert (progress.counts.succeeded, progress.counts.failed) == (20, 0)
        return progress

    def status(self, batch_id: str) -> dict[str, object]:
        return dict(orjson.loads(self.cluster.cli("status", batch_id, "--json").stdout))

    def waits_for(self, batch_id: str) -> str | None:
        return waiting_for(self.services, self.services.store.get(batch_id))

    def models_that_answered(self, batch_id: str) -> set[str]:
        """Read in this process: a command takes seconds on a busy machine."""
        pieces = b"".join(stream_results(self.services, batch_id))
        return {orjson.loads(line)["response"]["body"]["model"] for line in pieces.splitlines()}


@pytest.fixture
def town(cluster: Cluster, tmp_path: Path) -> Town:
    cluster.environ.pop("SYNTHGEN_POOL", None)
    source = tmp_path / "lines.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"prompt": f"line {n}"}) + b"\n" for n in range(20)))
    return Town(cluster, source)


def test_batches_go_to_the_pool_that_serves_their_model(town: Town, tmp_path: Path) -> None:
    red, blue = town.open("red"), town.open("blue")
    until("both say that they serve", lambda: {w.models for w in town.workers()} == {("red",), ("blue",)})

    to_red, said = town.submit("--model", "red")
    to_blue, _ = town.submit("--model", "blue")
    town.source = tmp_path / "named.jsonl"
    lines = [{"prompt": f"named {n}", "model": "blue"} for n in range(20)]
    town.source.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    by_its_lines, _ = town.submit()

    assert f"It goes to pool '{town.pool('red')}'." in said
    for batch, color in ((to_red, "red"), (to_blue, "blue"), (by_its_lines, "blue")):
        assert town.wait(batch).batch.options.pool == town.pool(color)
        assert town.models_that_answered(batch) == {color}
        assert town.waits_for(batch) is None
    assert to_red in red.log
    assert to_red not in blue.log
    assert all(batch in blue.log and batch not in red.log for batch in (to_blue, by_its_lines))
    models = orjson.loads(town.cluster.cli("models", "--json").stdout)
    assert [(model["model"], model["pools"], model["serving"]) for model in models] == [
        ("blue", [town.pool("blue")], 1),
        ("red", [town.pool("red")], 1),
    ]


def test_a_batch_for_a_model_that_nobody_serves_says_so_and_runs_when_a_worker_comes(town: Town) -> None:
    town.open("red")
    sentence = f"No worker serves 'green'; 1 pool live: {town.pool('red')}."

    batch, said = town.submit("--model", "green")

    assert sentence in said
    status = town.status(batch)
    assert (status["pending"], status["pool"]) == (20, "auto")
    assert str(status["waiting_for"]).startswith(sentence)
    town.open("green")
    town.wait(batch)
    assert town.models_that_answered(batch) == {"green"}


def test_a_pool_without_workers_holds_its_work(town: Town) -> None:
    batch = town.cluster.submit(town.source, "--model", "red", pool=town.pool("red"))

    assert (town.waits_for(batch) or "").startswith(f"Pool '{town.pool('red')}' has no live worker.")
    pools = orjson.loads(town.cluster.cli("pools", "--json").stdout)
    assert [(p["name"], p["workers"], p["pending"]) for p in pools if p["name"] == town.pool("red")] == [
        (town.pool("red"), 0, 20)
    ]
    town.open("red")
    town.wait(batch)


_MORTAL = """
import sys
from synthgen.engines.child_server import Patience
from synthgen.engines.server import ServerEngine
ServerEngine.patience = Patience(deaths=2, first_wait=0.1)
from cli.main import main
main(sys.argv[1:])
"""
"""``synthgen``, with less patience for an engine that dies."""

_DIES = """
import http.server, os, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "red"}]}')
    def do_POST(self):
        threading.Timer(0.5, os._exit, [1]).start()
        threading.Event().wait()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A server that takes requests and ends half a second later."""


def test_a_worker_whose_engine_is_gone_gives_its_work_back_says_why_and_ends_with_code_1(
    town: Town, tmp_path: Path
) -> None:
    program = tmp_path / "dies.py"
    program.write_text(_DIES)
    pool, command = town.pool("red"), shlex.join([sys.executable, str(program), "{port}"])
    words = ["worker", "--pool", pool, "--engine", "server", "--command", command]
    batch = town.cluster.submit(town.source, "--shard-requests", "5", "--model", "red", pool=pool)

    doomed = town.cluster.start("doomed", [sys.executable, "-c", _MORTAL, *words], PYTHONPATH=str(_ROOT))

    assert doomed.ends() == 1
    assert "this worker ends: The server server died 2 times" in doomed.log
    told = orjson.loads(town.cluster.cli("workers", "--pool", pool, "--json").stdout)
    assert [(worker["state"], "died 2 times" in worker["reason"]) for worker in told] == [("failed", True)]
    progress = town.cluster.progress(batch)
    assert (progress.batch.state.value, progress.counts.failed, progress.running) == ("in_progress", 0, 0)
    town.open("red")
    town.wait(batch)


def test_a_worker_whose_engine_cannot_start_says_why_and_ends_with_code_1(town: Town) -> None:
    pool = town.pool("red")
    command = shlex.join([sys.executable, "-c", "import sys; sys.exit('no weights here')", "{port}"])
    doomed = town.cluster.worker("--engine", "server", "--command", command, pool=pool, ready=False)

    assert doomed.ends() == 1
    assert "no weights here" in doomed.log
    assert "Traceback" not in doomed.log
    told = orjson.loads(town.cluster.cli("workers", "--pool", pool, "--json").stdout)
    assert [(worker["state"], worker["reason"] is not None) for worker in told] == [("failed", True)]


def test_a_worker_that_is_stopped_in_good_order_leaves_the_list(town: Town) -> None:
    worker = town.open("red")
    assert [w.pool for w in town.workers()] == [town.pool("red")]

    worker.send(signal.SIGTERM)

    assert worker.ends() == 0
    assert [w for w in town.services.registry.workers(silent_for=3600) if w.pool == town.pool("red")] == []
