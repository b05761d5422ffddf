"""``make bench-vllm``: real vLLM several ways on the same tiny model and prompts, in turn, in one run.

Our worker end to end (RabbitMQ, PostgreSQL, S3), vLLM's own ``run_batch`` as it comes and with the flag that our worker
sets, and a bare asynchronous client against the server that our worker would start. Starting vLLM counts for none: ours
is timed from the batch's first claim to its end, run_batch by its own progress bar, the bare client by its loop.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.benchmarks.cpu_shares import CpuShares
from tests.benchmarks.stack import Stack
from tests.benchmarks.vllm_server import PATIENCE, ask_all, vllm_server
from tests.services.vllm import Vllm

PROMPTS = int(os.environ.get("BENCH_PROMPTS", "4000"))
TOKENS = int(os.environ.get("BENCH_TOKENS", "32"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT", "512"))
"""Of the bare client; what our worker finds out for itself with this build of vLLM."""
_QUESTIONS = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"
_PROGRESS = re.compile(rb"100% Completed \| (\d+)/\1 \[.*?, *([\d.]+)(req/s|s/req)\]")

BARE: Final = "bare asynchronous client against a vLLM server"
RUN_BATCH: Final = "vLLM's run_batch"
RUN_BATCH_TUNED: Final = "vLLM's run_batch --performance-mode throughput"
OURS: Final = "synthgen worker end to end"


@dataclass(slots=True)
class Bench:
    """What every way needs, and the processor shares of two of them."""

    stack: Stack
    vllm: Vllm
    source: Path = Path()
    shares: dict[str, CpuShares] = field(default_factory=lambda: {BARE: CpuShares(), OURS: CpuShares()})

    def bare(self) -> float:
        with vllm_server(self.vllm) as address, self.shares[BARE]:
            return ask_all(self.source, address, IN_FLIGHT)

    def run_batch(self, *flags: str) -> float:
        target = self.stack.folder / "run_batch.jsonl"
        command = [
            str(self.vllm.python), "-m", "vllm.entrypoints.openai.run_batch", "-i", str(self.source), "-o", str(target),
            "--model", str(self.vllm.model), *self.vllm.arguments, *flags,
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, env=self.vllm.environ, timeout=PATIENCE)
        assert len(target.read_bytes().splitlines()) == PROMPTS
        return rate_of_run_batch(done.stderr)

    def run_batch_tuned(self) -> float:
        return self.run_batch("--performance-mode", "throughput")

    def ours(self) -> float:
        options = ["--engine", "vllm", "--model", str(self.vllm.model), "--vllm-python", str(self.vllm.python)]
        with self.stack.worker("--pool", "vllm", *options, extra=self.vllm.arguments, environ=self.vllm.environ):
            self.stack.until_ready(PATIENCE)
            with self.shares[OURS]:
                return PROMPTS / self.stack.run(self.source, "--pool", "vllm")


def test_vllm(stack: Stack, vllm: Vllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails only when a batch does not complete."""
    bench = Bench(stack, vllm)
    ways: dict[str, Callable[[], float]] = {
        BARE: bench.bare,
        RUN_BATCH: bench.run_batch,
        RUN_BATCH_TUNED: bench.run_batch_tuned,
        OURS: bench.ours,
    }
    rounds = []
    for number in range(ROUNDS):
        bench.source = _write(stack.folder / f"prompts-{number}.jsonl", salt=f"{number} {time.time_ns()}")
        turn = islice(cycle(ways), number, number + len(ways))  # another one first in every round
        rounds.append({way: ways[way]() for way in turn})
        with capsys.disabled():
            print(*(f"{way}: {rate:.1f}/s" for way, rate in rounds[-1].items()), sep=" · ", flush=True)
    with capsys.disabled():
        print(_report(rounds, bench.shares))


def rate_of_run_batch(progress: bytes) -> float:
    """Requests per second by the last word of its progress bar, which counts neither start-up nor writing."""
    *_, (_, figure, unit) = _PROGRESS.findall(progress)
    return float(figure) if unit == b"req/s" else 1 / float(figure)


def _write(path: Path, *, salt: str) -> Path:
    """Questions of GSM8K, over and over; the salts keep vLLM's prefix cache and our cache out of it."""
    questions = [orjson.loads(line)["question"] for line in _QUESTIONS.read_bytes().splitlines()]
    with path.open("wb") as file:
        for number, question in enumerate(islice(cycle(questions), PROMPTS)):
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"{number} {salt}: {question}"}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
            }
            row = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


def _report(rounds: Sequence[dict[str, float]], shares: dict[str, CpuShares]) -> str:
    ways = [f"| {way} | {statistics.median(each[way] for each in rounds):.1f} |" for way in sorted(rounds[0])]
    ratios = [
        f"| {OURS} ÷ {other} | {statistics.median(each[OURS] / each[other] for each in rounds):.2f} |"
        for other in (RUN_BATCH, RUN_BATCH_TUNED, BARE)
    ]
    cores = [
        f"| {way} | {', '.join(f'{name} {busy:.2f}' for name, busy in share.cores().items() if busy >= 0.01)} |"
        for way, share in shares.items()
    ]
    return "\n".join(
        [
            "",
            f"{PROMPTS:,} prompts of GSM8K, {TOKENS} tokens each, {ROUNDS} rounds, medians; ratios round by round",
            "",
            "| what | requests per second |",
            "|---|---|",
            *ways,
            "",
            "| ratio | |",
            "|---|---|",
            *ratios,
            "",
            "| way | cores kept busy |",
            "|---|---|",
            *cores,
        ]
    )
