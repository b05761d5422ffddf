"""``make bench-vllm``: real vLLM several ways on the same tiny model and prompts, in turn, in one run.

Our worker end to end (RabbitMQ, PostgreSQL, S3), vLLM's own ``run_batch`` as it comes and with the flag that our worker
sets, and a bare asynchronous client against the server that our worker would start. Starting vLLM counts for none: ours
is timed from the batch's first claim to its end, run_batch by its own progress bar, the bare client by its loop.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import orjson
import pytest

from tests.benchmarks.cpu_shares import CpuShares
from tests.benchmarks.stack import Stack
from tests.benchmarks.vllm_ways import BARE, OURS, RUN_BATCH, RUN_BATCH_TUNED, VllmWays
from tests.services.vllm import Vllm

PROMPTS = int(os.environ.get("BENCH_PROMPTS", "4000"))
TOKENS = int(os.environ.get("BENCH_TOKENS", "32"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT", "512"))
"""Of the bare client; what our worker finds out for itself with this build of vLLM."""
_QUESTIONS = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"


def test_vllm(stack: Stack, vllm: Vllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails only when a batch does not complete."""
    shares = {BARE: CpuShares(), OURS: CpuShares()}
    asked = VllmWays(stack, vllm)
    ways: dict[str, Callable[[Path], float]] = {
        BARE: partial(asked.bare, IN_FLIGHT, shares[BARE]),
        RUN_BATCH: asked.run_batch,
        RUN_BATCH_TUNED: partial(asked.run_batch, flags=("--performance-mode", "throughput")),
        OURS: partial(asked.ours, shares=shares[OURS]),
    }
    rounds = []
    for number in range(ROUNDS):
        source = _write(stack.folder / f"prompts-{number}.jsonl", salt=f"{number} {time.time_ns()}")
        turn = islice(cycle(ways), number, number + len(ways))  # another one first in every round
        rounds.append({way: ways[way](source) for way in turn})
        with capsys.disabled():
            print(*(f"{way}: {rate:.1f}/s" for way, rate in rounds[-1].items()), sep=" · ", flush=True)
    with capsys.disabled():
        print(_report(rounds, shares))


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
