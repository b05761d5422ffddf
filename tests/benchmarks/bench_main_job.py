"""``make bench``: the main job on the real stack, beside a bare aiohttp loop in the same run.

One worker process over RabbitMQ, PostgreSQL and a real S3 server against a mock that is not the bottleneck. Prints a
table in Markdown (kept by hand in docs/benchmarks.md) and judges nothing: read the ratios, the machine is noisy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import workload
from tests.services.ports import free_ports
from tests.services.rabbitmq import Broker
from tests.services.s3 import S3Server

REQUESTS = int(os.environ.get("BENCH_REQUESTS", "20000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SUBMITTED = int(os.environ.get("BENCH_SUBMITTED", "300000"))
"""Lines of the batch that is only submitted: enough that starting Python does not count."""
IN_FLIGHT = 256
_PYTHON = sys.executable
_PATIENCE = 600


@dataclass(slots=True)
class Usage:
    """CPU seconds and peak resident MB of a process and its children, read from outside while it runs."""

    cpu: float = 0.0
    peak_mb: float = 0.0

    def read(self, process: psutil.Process) -> None:
        times = process.cpu_times()
        self.cpu = times.user + times.system
        self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the parts are: the clients' environment, the mock's port, a folder, and the processes that are watched."""

    environ: Mapping[str, str]
    port: int
    folder: Path
    watched: Mapping[psutil.Process, Usage]
    submit: Usage


@dataclass(frozen=True, slots=True)
class Round:
    """Requests per second of each part."""

    bare: float
    uncached: float
    cached: float


def test_main_job(
    tmp_path: Path, database_url: str, broker: Broker, s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a test of speed: it fails only when a batch does not complete."""
    environ = {
        **os.environ,
        **s3_server.environ(),
        "SYNTHGEN_HOME": str(tmp_path / "home"),
        "SYNTHGEN_DATABASE_URL": database_url,
        "SYNTHGEN_BROKER_URL": broker.url,
        "SYNTHGEN_QUEUE_PREFIX": broker.queue_prefix,
        "SYNTHGEN_STORAGE_URL": f"s3://{s3_server.bucket}/bench",
        "SYNTHGEN_S3_ENDPOINT_URL": s3_server.endpoint_url,
    }
    (port,) = free_ports(1)
    used = {"worker": Usage(), "mock server": Usage(), "submit": Usage()}
    with _mock(port) as mock, _worker(environ, port, tmp_path) as worker:
        watched = {worker: used["worker"], mock: used["mock server"]}
        bench = Bench(environ, port, tmp_path, watched, used["submit"])
        rounds = [_round(bench, number) for number in range(ROUNDS)]
        source = workload.write(tmp_path / "large.jsonl", SUBMITTED)
        started = time.perf_counter()
        _submit(bench, source, pool="nobody")
        submitted = SUBMITTED / (time.perf_counter() - started)
    with capsys.disabled():
        print(_report(rounds, submitted, used))


def _round(bench: Bench, number: int) -> Round:
    source = workload.write(bench.folder / f"batch-{number}.jsonl", REQUESTS, salt=f"{number}-{time.time_ns()}-")
    bare = _bare(source, bench.port, bench.folder / "bare.jsonl")
    served = _served(bench.port)
    uncached = _batch(bench, source)
    assert _served(bench.port) - served == REQUESTS, "every request is asked exactly once"
    cached = _batch(bench, source)
    assert _served(bench.port) - served == REQUESTS, "nothing is asked twice"
    return Round(bare, uncached, cached)


def _bare(source: Path, port: int, target: Path) -> float:
    command = [
        _PYTHON, "-m", "tests.benchmarks.bare_client", str(source), f"http://127.0.0.1:{port}/v1",
        str(IN_FLIGHT), str(target),
    ]  # fmt: skip
    done = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE).stdout)
    return float(done["requests"] / done["seconds"])


def _batch(bench: Bench, source: Path) -> float:
    """Requests per second from the batch's first claim to its end."""
    status = _wait_for(bench, _submit(bench, source, pool="bench"))
    assert status["succeeded"] == REQUESTS
    begun, ended = (datetime.fromisoformat(str(status[name])) for name in ("started_at", "completed_at"))
    return REQUESTS / (ended - begun).total_seconds()


def _submit(bench: Bench, source: Path, *, pool: str) -> str:
    """The id of the new batch."""
    command = [_PYTHON, "-m", "cli", "submit", str(source), "--pool", pool]
    with subprocess.Popen(
        command, env=bench.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        seen = psutil.Process(process.pid)
        with suppress(psutil.NoSuchProcess):
            while process.poll() is None:
                bench.submit.read(seen)
                time.sleep(0.02)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.strip().splitlines()[-1]


def _wait_for(bench: Bench, batch: str) -> dict[str, object]:
    deadline = time.monotonic() + _PATIENCE
    command = [_PYTHON, "-m", "cli", "status", batch, "--json"]
    while time.monotonic() < deadline:
        for process, usage in bench.watched.items():
            usage.read(process)
        done = subprocess.run(command, env=bench.environ, capture_output=True, check=True)
        status: dict[str, object] = json.loads(done.stdout)
        if status["status"] == "completed":
            return status
        time.sleep(2)
    raise AssertionError(f"{batch} is still {status['status']}")


def _served(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/served") as reply:
        return int(reply.read())


@contextmanager
def _mock(port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen([_PYTHON, "-m", "tests.benchmarks.mock_server", str(port)])
    try:
        _until_it_answers(port)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _until_it_answers(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            _served(port)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the mock server does not answer")


@contextmanager
def _worker(environ: Mapping[str, str], port: int, folder: Path) -> Iterator[psutil.Process]:
    log = folder / "worker.log"
    command = [
        _PYTHON, "-m", "cli", "worker", "--pool", "bench", "--engine", "openai",
        "--base-url", f"http://127.0.0.1:{port}/v1", "--in-flight", str(IN_FLIGHT),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _report(rounds: list[Round], submitted: float, usage: Mapping[str, Usage]) -> str:
    def middle(name: str) -> float:
        return statistics.median(getattr(r, name) for r in rounds)

    ratio = statistics.median(r.uncached / r.bare for r in rounds)
    total = {"worker": 2 * REQUESTS * ROUNDS, "mock server": 2 * REQUESTS * ROUNDS, "submit": SUBMITTED}
    lines = [
        "",
        f"{REQUESTS:,} requests, {ROUNDS} rounds, {IN_FLIGHT} in flight, medians",
        "",
        "| what | per second |",
        "|---|---|",
        f"| bare aiohttp loop, requests | {middle('bare'):,.0f} |",
        f"| one synthgen worker, requests not cached | {middle('uncached'):,.0f} |",
        f"| … of the bare loop, pair by pair | {ratio:.2f} |",
        f"| one synthgen worker, requests all cached | {middle('cached'):,.0f} |",
        f"| synthgen submit, lines (whole process, {SUBMITTED:,} lines) | {submitted:,.0f} |",
        "",
        "| process | CPU seconds per 1,000 requests (worker: half of them cached) | peak MB |",
        "|---|---|---|",
    ]
    for name, used in usage.items():
        lines.append(f"| {name} | {used.cpu / total[name] * 1000:.3f} | {used.peak_mb:.0f} |")
    return "\n".join(lines)
