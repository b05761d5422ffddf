"""``make bench``: the main job on the real stack, beside a bare aiohttp loop in the same run.

One worker process, then two, over RabbitMQ, PostgreSQL and a real S3 server against a mock that is not the bottleneck:
a worker is one interpreter, which keeps one core busy. Prints tables in Markdown (kept by hand in docs/benchmarks.md)
and judges nothing: read the ratios, the machine is noisy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import workload
from tests.benchmarks.stack import PYTHON, Stack, Usage
from tests.services.ports import free_ports

REQUESTS = int(os.environ.get("BENCH_REQUESTS", "20000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SUBMITTED = int(os.environ.get("BENCH_SUBMITTED", "300000"))
"""Lines of the batch that is only submitted: enough that starting Python does not count."""
IN_FLIGHT = 256
"""Over all workers."""
_PATIENCE = 600


@dataclass(frozen=True, slots=True)
class Round:
    """Requests per second of each part."""

    bare: float
    uncached: float
    cached: float


def test_main_job(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a test of speed: it fails only when a batch does not complete, or when anything is asked twice."""
    (port,) = free_ports(1)
    used = {"worker": Usage(), "mock server": Usage(), "submit": Usage()}
    with _mock(port) as mock:
        with _workers(stack, port, 1) as [worker]:
            stack.watched.update({worker: used["worker"], mock: used["mock server"]})
            alone = [_round(stack, port) for _ in range(ROUNDS)]
            stack.watched.clear()
        with _workers(stack, port, 2):
            together = [_round(stack, port) for _ in range(ROUNDS)]
        source = workload.write(stack.folder / "large.jsonl", SUBMITTED)
        started = time.perf_counter()
        stack.submit(source, "--pool", "nobody", usage=used["submit"])
        submitted = SUBMITTED / (time.perf_counter() - started)
    with capsys.disabled():
        print(_report(alone, together, submitted, used))


@contextmanager
def _workers(stack: Stack, port: int, count: int) -> Iterator[list[psutil.Process]]:
    """So many of one pool, all ready, with the requests in flight divided among them."""
    options = ("--pool", "bench", "--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1")
    with ExitStack() as started:
        workers = []
        for _ in range(count):
            workers.append(started.enter_context(stack.worker(*options, "--in-flight", str(IN_FLIGHT // count))))
            stack.until_ready(_PATIENCE)
        yield workers


def _round(stack: Stack, port: int) -> Round:
    source = workload.write(stack.folder / "batch.jsonl", REQUESTS, salt=f"{time.time_ns()}-")
    bare = _bare(source, port, stack.folder / "bare.jsonl")
    served = _served(port)
    uncached = REQUESTS / stack.run(source, "--pool", "bench")
    assert _served(port) - served == REQUESTS, "every request is asked exactly once"
    cached = REQUESTS / stack.run(source, "--pool", "bench")
    assert _served(port) - served == REQUESTS, "nothing is asked twice"
    return Round(bare, uncached, cached)


def _bare(source: Path, port: int, target: Path) -> float:
    command = [
        PYTHON, "-m", "tests.benchmarks.bare_client", str(source), f"http://127.0.0.1:{port}/v1",
        str(IN_FLIGHT), str(target),
    ]  # fmt: skip
    done = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE).stdout)
    return float(done["requests"] / done["seconds"])


def _served(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/served") as reply:
        return int(reply.read())


@contextmanager
def _mock(port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen([PYTHON, "-m", "tests.benchmarks.mock_server", str(port)])
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


def _report(alone: list[Round], together: list[Round], submitted: float, usage: Mapping[str, Usage]) -> str:
    def middle(rounds: list[Round], name: str) -> float:
        return statistics.median(getattr(r, name) for r in rounds)

    def ratio(rounds: list[Round]) -> float:
        return statistics.median(r.uncached / r.bare for r in rounds)

    asked = 2 * REQUESTS * ROUNDS
    lines_of = {"worker": asked, "mock server": asked // 2, "submit": SUBMITTED}
    lines = [
        "",
        f"{REQUESTS:,} requests, {ROUNDS} rounds, {IN_FLIGHT} in flight, medians",
        "",
        "| what, per second | one worker | two workers |",
        "|---|---|---|",
        f"| bare aiohttp loop, requests | {middle(alone, 'bare'):,.0f} | {middle(together, 'bare'):,.0f} |",
        f"| synthgen, requests not cached | {middle(alone, 'uncached'):,.0f} | {middle(together, 'uncached'):,.0f} |",
        f"| … of the bare loop, pair by pair | {ratio(alone):.2f} | {ratio(together):.2f} |",
        f"| synthgen, requests all cached | {middle(alone, 'cached'):,.0f} | {middle(together, 'cached'):,.0f} |",
        "",
        f"synthgen submit: {submitted:,.0f} lines per second (whole process, {SUBMITTED:,} lines)",
        "",
        "| process | CPU seconds per 1,000 lines (worker: half of them cached) | peak MB |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {used.cpu / lines_of[n] * 1000:.3f} | {used.peak_mb:.0f} |" for n, used in usage.items()]
    return "\n".join(lines)
