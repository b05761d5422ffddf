"""``make bench-vllm``: real vLLM three ways on the same tiny model and prompts, in turn, in one run.

Our worker end to end (RabbitMQ, PostgreSQL, S3), vLLM's own ``run_batch``, and a bare asynchronous client against its
server. Starting vLLM counts for none: ours is timed from its first claim, run_batch less the time for one prompt.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.benchmarks.stack import PYTHON, Stack, Usage
from tests.services.ports import free_ports
from tests.services.vllm import Vllm

PROMPTS = int(os.environ.get("BENCH_PROMPTS", "1000"))
TOKENS = int(os.environ.get("BENCH_TOKENS", "32"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IN_FLIGHT = 256
_PATIENCE = 900
_QUESTIONS = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"


@dataclass(frozen=True, slots=True)
class Round:
    """Requests per second of each way."""

    bare: float
    run_batch: float
    ours: float


def test_vllm(stack: Stack, vllm: Vllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails only when a batch does not complete."""
    usage = Usage()
    rounds = [_round(stack, vllm, number, usage) for number in range(ROUNDS)]
    with capsys.disabled():
        print(_report(rounds, usage))


def _round(stack: Stack, vllm: Vllm, number: int, usage: Usage) -> Round:
    """One way after the other: on two cores they cannot run side by side."""
    source = _write(stack.folder / f"prompts-{number}.jsonl", PROMPTS, salt=f"{number} {time.time_ns()}")
    (port,) = free_ports(1)
    with _server(vllm, port):
        bare = _bare(source, port, stack.folder / "bare.jsonl")
    one = _write(stack.folder / "one.jsonl", 1, salt="one")
    start_up = _run_batch(vllm, one, stack.folder / "one.out")
    run_batch = PROMPTS / (_run_batch(vllm, source, stack.folder / "run_batch.out") - start_up)
    options = ("--pool", "vllm", "--engine", "vllm", "--model", str(vllm.model), "--vllm-python", str(vllm.python))
    with stack.worker(*options, "--in-flight", str(IN_FLIGHT), extra=vllm.arguments, environ=vllm.environ) as worker:
        stack.watched[worker] = usage
        ours = PROMPTS / stack.run(source, "--pool", "vllm")
        del stack.watched[worker]
    return Round(bare, run_batch, ours)


def _write(path: Path, count: int, *, salt: str) -> Path:
    """Questions of GSM8K; the salt keeps vLLM's prefix cache and ours out of it."""
    questions = [orjson.loads(line)["question"] for line in _QUESTIONS.read_bytes().splitlines()[:count]]
    with path.open("wb") as file:
        for number, question in enumerate(questions):
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"{salt}: {question}"}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
            }
            row = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


def _bare(source: Path, port: int, target: Path) -> float:
    command = [
        PYTHON, "-m", "tests.benchmarks.bare_client", str(source), f"http://127.0.0.1:{port}/v1",
        str(IN_FLIGHT), str(target),
    ]  # fmt: skip
    done = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE).stdout)
    return float(done["requests"] / done["seconds"])


def _run_batch(vllm: Vllm, source: Path, target: Path) -> float:
    """Seconds of the whole process."""
    command = [
        str(vllm.python), "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(target),
        "--model", str(vllm.model), *vllm.arguments,
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=vllm.environ, timeout=_PATIENCE)
    seconds = time.perf_counter() - started
    assert len(target.read_bytes().splitlines()) == len(source.read_bytes().splitlines())
    return seconds


@contextmanager
def _server(vllm: Vllm, port: int) -> Iterator[None]:
    """As our worker starts it: without a log line for each request."""
    command = [
        str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--model", str(vllm.model), "--disable-uvicorn-access-log", *vllm.arguments,
    ]  # fmt: skip
    with subprocess.Popen(command, env=vllm.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _until_healthy(port)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _until_healthy(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("vLLM did not become healthy")


def _report(rounds: list[Round], usage: Usage) -> str:
    def middle(name: str) -> float:
        return statistics.median(getattr(r, name) for r in rounds)

    over_run_batch = statistics.median(r.ours / r.run_batch for r in rounds)
    of_bare = statistics.median(r.ours / r.bare for r in rounds)
    return "\n".join(
        [
            "",
            f"{PROMPTS:,} prompts of GSM8K, {TOKENS} tokens each, {ROUNDS} rounds, {IN_FLIGHT} in flight, medians",
            "",
            "| what | requests per second |",
            "|---|---|",
            f"| bare asynchronous client against a vLLM server | {middle('bare'):.1f} |",
            f"| vLLM's run_batch | {middle('run_batch'):.1f} |",
            f"| synthgen worker end to end | {middle('ours'):.1f} |",
            f"| synthgen ÷ run_batch, round by round | {over_run_batch:.2f} |",
            f"| synthgen ÷ bare client, round by round | {of_bare:.2f} |",
            "",
            f"The worker with its vLLM: {usage.cpu:.0f} CPU seconds in a round, {usage.peak_mb:,.0f} MB at most.",
        ]
    )
