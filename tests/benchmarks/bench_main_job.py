"""``make bench``: the main job on the real stack, beside a bare aiohttp loop in the same run.

One worker process over RabbitMQ, PostgreSQL and a real S3 server against a mock that is not the bottleneck. Prints a
table in Markdown (kept by hand in docs/benchmarks.md) and judges nothing: read the ratios, the machine is noisy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    engine = ("--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1", "--in-flight", str(IN_FLIGHT))
    with _mock(port) as mock, stack.worker("--pool", "bench", *engine) as worker:
        stack.watched.update({worker: used["worker"], mock: used["mock server"]})
        rounds = [_round(stack, port, number) for number in range(ROUNDS)]
        source = workload.write(stack.folder / "large.jsonl", SUBMITTED)
        started = time.perf_counter()
        stack.submit(source, "--pool", "nobody", usage=used["submit"])
        submitted = SUBMITTED / (time.perf_counter() - started)
    with capsys.disabled():
        print(_report(rounds, submitted, used))


def _round(stack: Stack, port: int, number: int) -> Round:
    source = workload.write(stack.folder / f"batch-{number}.jsonl", REQUESTS, salt=f"{number}-{time.time_ns()}-")
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


def _report(rounds: list[Round], submitted: float, usage: Mapping[str, Usage]) -> str:
    def middle(name: str) -> float:
        return statistics.median(getattr(r, name) for r in rounds)

    ratio = statistics.median(r.uncached / r.bare for r in rounds)
    asked = 2 * REQUESTS * ROUNDS
    lines_of = {"worker": asked, "mock server": asked // 2, "submit": SUBMITTED}
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
        "| process | CPU seconds per 1,000 lines (worker: half of them cached) | peak MB |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {used.cpu / lines_of[n] * 1000:.3f} | {used.peak_mb:.0f} |" for n, used in usage.items()]
    return "\n".join(lines)
