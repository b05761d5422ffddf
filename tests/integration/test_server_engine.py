"""Engines with a server of their own, on the real lane with real processes and real deaths: nobody else suffers."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.child_server import Patience
from synthgen.engines.lane import Asking, Lane
from synthgen.engines.server import ServerEngine
from synthgen.engines.vllm import VllmEngine
from synthgen.errors import EngineGone, FatalError
from synthgen.request import LineRules, Request, parse_line
from synthgen.retry import RetryPolicy
from tests.fakes.vllm_process import as_python

QUICK = Patience(start=30, silence=30, stop=5, deaths=10, within=600, first_wait=0.05, longest_wait=0.05)
POLICY = RetryPolicy(base=0.01, cap=0.05, attempts=3)
LIMIT = 60.0
POISON = "kill [[stub die=1]]"
CRASHED = "engine_crashed"


class Stage:
    """An engine on a lane, and the journal of its servers."""

    def __init__(self, engine: ServerEngine, lane: Lane, journal: Path) -> None:
        self.engine = engine
        self.lane = lane
        self._journal = journal

    @property
    def journal(self) -> list[str]:
        return self._journal.read_text(encoding="utf-8").splitlines() if self._journal.exists() else []

    def count(self, word: str) -> int:
        return sum(line.startswith(word) for line in self.journal)

    def wait_for_questions(self, count: int) -> None:
        until(lambda: self.count("asked") >= count)

    def kill(self) -> int:
        """The server, as with kill -9; the port that it had."""
        child = self.engine._child
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        return int(child.base_url.rpartition(":")[2])


Stages = Callable[..., Stage]


@pytest.fixture(name="stage")
def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    """Starts a VllmEngine whose vLLM is a stub; ``arguments`` go to it."""
    journal = tmp_path / "journal"
    lanes: list[Lane] = []

    def start(
        *arguments: str,
        in_flight: int | None = None,
        patience: Patience = QUICK,
        attempts: int = 3,
        options: dict[str, str] | None = None,
    ) -> Stage:
        monkeypatch.setattr(ServerEngine, "patience", patience)
        python = as_python(tmp_path, journal)
        spec = EngineSpec("vllm", model="weights", python=str(python), arguments=arguments, options=options or {})
        engine = VllmEngine(spec)
        lane = Lane(engine, policy=replace(POLICY, attempts=attempts), in_flight=in_flight)
        lanes.append(lane)
        lane.start()
        return Stage(engine, lane, journal)

    yield start
    for lane in lanes:
        lane.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(stage: Stage, *prompts: str) -> Asking:
    rows = [orjson.dumps({"prompt": prompt}) for prompt in prompts]
    parsed = [parse_line(row, line, LineRules(model="tiny")) for line, row in enumerate(rows, start=1)]
    return stage.lane.ask([request for request in parsed if isinstance(request, Request)])


def outcomes(asking: Asking) -> list[str]:
    """In the order of the lines: ``ok`` or the code of the failure; every line has one, and only one."""
    until(lambda: asking.finished)
    found = sorted(asking.take(), key=lambda response: response.line)
    assert [response.line for response in found] == list(range(1, asking.size + 1))
    return [response.error_code or "ok" for response in found]


def many(count: int) -> list[str]:
    return [f"question {number}" for number in range(count)]


def test_a_prompt_that_kills_the_server_fails_alone_and_everyone_else_is_answered(stage: Stages) -> None:
    started = stage(in_flight=16)

    found = outcomes(ask(started, *many(20), POISON, *many(20)))

    assert found == ["ok"] * 20 + ["engine_crashed"] + ["ok"] * 20
    assert 3 <= started.count("dies") <= 4
    assert started.count("starts") == started.count("dies") + 1


def test_two_that_kill_it_are_both_found(stage: Stages) -> None:
    started = stage(in_flight=16)
    assert outcomes(ask(started, POISON, *many(20), POISON)) == ["engine_crashed"] + ["ok"] * 20 + ["engine_crashed"]


def test_more_that_kill_it_than_it_may_die_are_all_found(stage: Stages) -> None:
    started = stage(in_flight=16, patience=replace(QUICK, deaths=7))
    found = outcomes(ask(started, *many(3), POISON, *many(8), POISON, *many(3), POISON, *many(3), POISON))
    assert found == [*["ok"] * 3, CRASHED, *["ok"] * 8, CRASHED, *["ok"] * 3, CRASHED, *["ok"] * 3, CRASHED]
    assert started.count("dies") >= 7


def test_kill_9_in_the_middle_fails_nobody(stage: Stages) -> None:
    started = stage("--latency", "0.3", in_flight=16)
    asking = ask(started, *many(64))
    started.wait_for_questions(24)
    started.kill()
    assert outcomes(asking) == ["ok"] * 64
    assert started.count("starts") == 2


@pytest.mark.parametrize("status", ["500", "424"])
def test_a_server_that_answers_with_errors_for_a_while_before_it_ends_fails_nobody(stage: Stages, status: str) -> None:
    started = stage("--broken-status", status, in_flight=8, attempts=1)
    assert outcomes(ask(started, "break [[stub break=7]]", *many(20))) == ["ok"] * 21
    assert started.count("starts") == 2


def test_an_error_of_a_server_that_lives_is_that_requests_own(stage: Stages) -> None:
    started = stage()
    found = outcomes(ask(started, "a [[stub status=500,200]]", "b", "c [[stub status=400]]"))
    assert (found[:2], started.count("starts")) == (["ok", "ok"], 1)
    assert found[2] not in ("ok", "engine_crashed")


def test_a_server_that_comes_back_at_another_port_is_found_there(stage: Stages) -> None:
    started = stage(patience=replace(QUICK, first_wait=1.0, longest_wait=1.0))
    assert outcomes(ask(started, "before")) == ["ok"]
    with socket_at(started.kill()):
        assert outcomes(ask(started, "after")) == ["ok"]
    assert len({line for line in started.journal if line.startswith("starts")}) == 2


@contextmanager
def socket_at(port: int) -> Iterator[None]:
    """Takes the port as soon as the dying server lets go of it."""
    taken: list[socket.socket] = []

    def take() -> bool:
        with suppress(OSError):
            taken.append(socket.create_server(("127.0.0.1", port)))
        return bool(taken)

    until(take)
    with taken[0]:
        yield


def test_in_flight_is_twice_what_vllm_says_it_runs_at_once(stage: Stages) -> None:
    assert stage("--max-num-seqs", "12").lane.in_flight == 24


def test_who_names_a_number_in_flight_gets_it(stage: Stages) -> None:
    assert stage("--max-num-seqs", "12", in_flight=5).lane.in_flight == 5


def test_engine_options_that_are_meant_for_other_workers_are_in_nobodys_way(stage: Stages) -> None:
    assert outcomes(ask(stage(options={"latency": "0.2"}), "question")) == ["ok"]


def test_a_sleeping_vllm_is_woken_before_it_is_asked(stage: Stages) -> None:
    started = stage()
    outcomes(ask(started, "before"))
    started.lane.sleep()
    started.lane.sleep()

    assert outcomes(ask(started, *many(8))) == ["ok"] * 8

    assert [line.split()[0] for line in started.journal[:5]] == ["starts", "asked", "sleeps", "wakes", "asked"]
    assert started.count("wakes") == started.count("starts") == 1


def test_a_busy_vllm_is_not_put_to_sleep(stage: Stages) -> None:
    started = stage("--latency", "0.5")
    asking = ask(started, "long")
    started.wait_for_questions(1)
    started.lane.sleep()
    assert outcomes(asking) == ["ok"]
    assert started.count("sleeps") == 0


def test_a_vllm_that_dies_in_its_sleep_comes_back_and_is_asked(stage: Stages) -> None:
    started = stage()
    started.lane.sleep()
    started.kill()
    assert outcomes(ask(started, "after")) == ["ok"]


def test_a_vllm_that_died_in_its_sleep_is_awake_and_can_be_put_to_sleep_again(stage: Stages) -> None:
    started = stage()
    started.lane.sleep()
    started.kill()
    until(lambda: started.count("starts") == 2 and started.engine.ready)
    assert not started.engine.asleep
    started.lane.sleep()
    assert started.engine.asleep
    assert started.count("sleeps") == 2


@pytest.mark.parametrize("failing", ["--fail-sleep", "--fail-wake"])
def test_a_vllm_that_fails_to_sleep_or_to_wake_is_started_again_and_nobody_waits_for_ever(
    stage: Stages, failing: str
) -> None:
    started = stage(failing, "500")
    started.lane.sleep()
    assert outcomes(ask(started, *many(4))) == ["ok"] * 4
    assert started.count("starts") == 2


def test_a_vllm_that_could_not_sleep_is_not_asked_again(stage: Stages) -> None:
    started = stage("--fail-sleep", "500")
    started.lane.sleep()
    assert outcomes(ask(started, "question")) == ["ok"]
    started.lane.sleep()
    assert (started.count("sleeps"), started.count("starts")) == (1, 2)


def test_a_vllm_that_knows_no_sleep_stays_as_it_is(stage: Stages) -> None:
    started = stage("--fail-sleep", "404")
    started.lane.sleep()
    assert not started.engine.asleep
    assert outcomes(ask(started, "question")) == ["ok"]
    assert started.count("starts") == 1


def test_a_server_that_dies_too_often_is_given_up_and_its_questions_are_nobodys_failure(stage: Stages) -> None:
    started = stage("--latency", "600", patience=replace(QUICK, deaths=2))
    asking = ask(started, *many(4))
    for life in (1, 2):
        started.wait_for_questions(4 if life == 1 else 5)
        started.kill()
    until(lambda: asking.finished)
    assert asking.take() == []
    assert isinstance(asking.fatal, EngineGone)
    assert started.lane.gone is not None
    assert "died 2 times within 10 minutes" in started.lane.gone


def test_a_server_that_cannot_start_says_why_in_a_few_lines() -> None:
    script = """echo 'ValueError: no room' >&2; for n in $(seq 40); do echo frame $n; done
        echo 'RuntimeError: failed. See root cause above.' >&2; exit 1 # {port}"""
    lane = Lane(ServerEngine(EngineSpec("server", command=("sh", "-c", script))), policy=POLICY)
    with pytest.raises(FatalError) as caught:
        lane.start()
    assert caught.value.message.splitlines()[1].strip() == "ValueError: no room"
    assert len(caught.value.message.splitlines()) < 10
