"""A server of our own that hangs, and one that is only slow, with real processes on the real lane."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.child_server import Patience
from synthgen.engines.lane import Asking, Lane
from synthgen.engines.server import ServerEngine
from synthgen.request import LineRules, Request, parse_line
from synthgen.retry import RetryPolicy
from tests.stub_llm import answer_to

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
HANG = "[[stub hang=1]]"


def patience(**stall: float) -> Patience:
    return Patience(start=30, silence=30, stop=1, first_wait=0.05, longest_wait=0.05, **stall)


Start = Callable[..., Lane]


@pytest.fixture(name="start")
def _start(journal: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A lane over a server with these ``options`` and so much patience."""
    lanes: list[Lane] = []
    monkeypatch.chdir(ROOT)

    def start(limits: Patience, *options: str) -> Lane:
        monkeypatch.setattr(ServerEngine, "patience", limits)
        program = [sys.executable, "-m", "tests.fakes.hanging_server", "--port", "{port}", "--journal", str(journal)]
        lane = Lane(ServerEngine(EngineSpec("server", command=(*program, *options))), policy=RetryPolicy(), in_flight=8)
        lanes.append(lane)
        lane.start()
        return lane

    yield start
    for lane in lanes:
        lane.close()


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def ask(lane: Lane, *prompts: str) -> Asking:
    rows = [orjson.dumps({"prompt": prompt}) for prompt in prompts]
    parsed = [parse_line(row, line, LineRules(model="m")) for line, row in enumerate(rows, start=1)]
    return lane.ask([request for request in parsed if isinstance(request, Request)])


def succeeded(asking: Asking, *prompts: str) -> int:
    """How many of these are answered when all have ended."""
    deadline = time.monotonic() + LIMIT
    while not asking.finished:
        assert time.monotonic() < deadline
        asking.wait(0.1)
    answered = {response.line: response.body for response in asking.take() if response.succeeded}
    return sum(
        answer_to(prompt).encode() in (answered.get(line) or b"") for line, prompt in enumerate(prompts, start=1)
    )


@pytest.mark.parametrize(
    ("limits", "options", "told"),
    [
        (patience(stall=0.5, stall_unmeasured=600), (), "made no progress for 0.5 s with 8 requests in flight"),
        (patience(stall=600, stall_unmeasured=3), ("--no-metrics",), "made no progress for 3 s with 8 requests"),
    ],
    ids=["by_its_tokens", "by_its_replies"],
)
def test_a_server_that_hangs_but_calls_itself_well_is_started_again_and_no_request_fails(
    start: Start,
    journal: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    limits: Patience,
    options: tuple[str, ...],
    told: str,
) -> None:
    prompts = [*(f"question {number}" for number in range(10)), HANG, *(f"more {number}" for number in range(20))]
    with caplog.at_level(logging.ERROR, "synthgen.engine"):
        assert succeeded(ask(start(limits, *options), *prompts), *prompts) == len(prompts)
    assert journal.read_text().split() == ["starts", "hangs", "starts"]
    assert told in caplog.text


def test_a_server_whose_answers_take_long_is_left_alone_while_its_tokens_move(start: Start, journal: Path) -> None:
    limits = patience(stall=0.4, stall_unmeasured=600)
    assert succeeded(ask(start(limits, "--latency", "3"), "a long story"), "a long story") == 1
    assert journal.read_text().split() == ["starts"]


def test_a_request_that_waits_for_whoever_took_a_dead_servers_port_is_asked_again(start: Start) -> None:
    lane = start(patience(stall=600, stall_unmeasured=600))
    assert isinstance(lane.engine, ServerEngine)
    child = lane.engine._child
    with socket.create_server(("127.0.0.1", 0)) as silent:
        child._port = silent.getsockname()[1]
        asking = ask(lane, "anybody there?")
        silent.settimeout(LIMIT)
        waits, _ = silent.accept()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with waits:
            assert succeeded(asking, "anybody there?") == 1
