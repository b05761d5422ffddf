"""What asking requests of one system prompt one after the other is worth, when the prefix cache cannot hold them all.

The same rows, many system prompts in turn: to one vLLM server by one bare client, in the order of the input and in the
order in which our shards ask; and as a batch, by vLLM's ``run_batch`` and by our worker end to end.
"""

from __future__ import annotations

import random
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from synthgen.batch import BatchOptions
from synthgen.beginnings import by_beginning
from synthgen.request import CHAT, LineRules, Request, parse_line
from tests.benchmarks.stack import Stack
from tests.benchmarks.vllm_server import ask_all, vllm_server
from tests.benchmarks.vllm_ways import OURS, RUN_BATCH, VllmWays
from tests.services.vllm import Vllm

ROWS = 1_200
PROMPTS = 150
PROMPT_LENGTH = 640
"""Characters, which are about as many tokens of the tiny model: five of vLLM's blocks."""
FLAGS = ("--num-gpu-blocks-override", "260", "--max-num-seqs", "24")
"""Room for the running requests and some twenty system prompts besides."""
ROUNDS = 3
_SHARD = BatchOptions().shard_requests
_QUESTIONS = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"


def test_prefixes(vllm: Vllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asserts nothing about time; fails when a request does."""
    plain, grouped = [], []
    with vllm_server(vllm, *FLAGS) as address:
        for number in range(ROUNDS):
            plain.append(_measure(_rows(f"{number} plain"), address, tmp_path / "rows.jsonl"))
            ordered = list(_as_shards_ask(_rows(f"{number} grouped")))
            grouped.append(_measure(ordered, address, tmp_path / "rows.jsonl"))
    with capsys.disabled():
        print(_report(plain, grouped))


def test_batches_with_many_system_prompts(stack: Stack, vllm: Vllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails only when a batch does not complete. Both run as many sequences at once: ``FLAGS`` say how many."""
    asked = VllmWays(stack, replace(vllm, arguments=(*vllm.arguments, *FLAGS)))
    ways: dict[str, Callable[[Path], float]] = {RUN_BATCH: asked.run_batch, OURS: asked.ours}
    rounds = []
    for number in range(ROUNDS):
        turn = list(ways)[:: -1 if number % 2 else 1]  # another one first in every round
        rounds.append({way: ways[way](_write(stack.folder / "rows.jsonl", _rows(f"{number} {way}"))) for way in turn})
    with capsys.disabled():
        print(_batches_report(rounds))


def _rows(salt: str) -> list[Request]:
    """Every system prompt in turn, over and over; the salt keeps what was asked before out of it."""
    questions = [orjson.loads(line)["question"] for line in _QUESTIONS.read_bytes().splitlines()]
    dice = random.Random(7)
    salt = f"{salt} {time.time_ns()}"
    prompts = [f"{salt} {k} {' '.join(dice.sample(questions, 3))}"[:PROMPT_LENGTH] for k in range(PROMPTS)]
    return [_row(number, prompts[number % PROMPTS], questions[number][:120]) for number in range(ROWS)]


def _row(number: int, system: str, question: str) -> Request:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 16, "ignore_eos": True}
    row = {"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}
    request = parse_line(orjson.dumps(row), number + 1, LineRules())
    assert isinstance(request, Request), request
    return request


def _as_shards_ask(rows: Sequence[Request]) -> Iterator[Request]:
    for start in range(0, len(rows), _SHARD):
        yield from by_beginning(rows[start : start + _SHARD])


def _write(path: Path, rows: Sequence[Request]) -> Path:
    lines = ({"custom_id": row.custom_id, "method": "POST", "url": CHAT, "body": row.body} for row in rows)
    path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    return path


def _measure(rows: Sequence[Request], address: str, path: Path) -> tuple[float, float]:
    """Requests per second, and the share of prompt tokens that came out of vLLM's prefix cache."""
    before = _prefix_cache(address)
    rate = ask_all(_write(path, rows), address, 48)
    queries, hits = (after - earlier for after, earlier in zip(_prefix_cache(address), before, strict=True))
    return rate, hits / queries


def _prefix_cache(address: str) -> tuple[float, float]:
    """Tokens looked up and tokens found since the server started."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    queries, hits = (sum(float(line.split()[-1]) for line in lines if line.startswith(name)) for name in names)
    return queries, hits


def _report(plain: Sequence[tuple[float, float]], grouped: Sequence[tuple[float, float]]) -> str:
    lines = [
        "",
        f"{ROWS:,} rows with {PROMPTS} system prompts in turn, room for some twenty; {ROUNDS} rounds, medians",
        "",
        "| order | requests per second | prompt tokens out of the prefix cache |",
        "|---|---|---|",
    ]
    for name, figures in (("of the input", plain), ("of our shards", grouped)):
        rate, found = (statistics.median(column) for column in zip(*figures, strict=True))
        lines.append(f"| {name} | {rate:.0f} | {found:.0%} |")
    ratio = statistics.median(after[0] / before[0] for before, after in zip(plain, grouped, strict=True))
    return "\n".join([*lines, f"| ratio, round by round | {ratio:.2f} | |"])


def _batches_report(rounds: Sequence[dict[str, float]]) -> str:
    rates = [f"| {way} | {statistics.median(each[way] for each in rounds):.0f} |" for way in (RUN_BATCH, OURS)]
    ratio = statistics.median(each[OURS] / each[RUN_BATCH] for each in rounds)
    head = ["", "The same rows as a batch", "", "| way | requests per second |", "|---|---|"]
    return "\n".join([*head, *rates, f"| ratio, round by round | {ratio:.2f} |"])
