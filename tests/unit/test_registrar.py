"""What a worker says of itself in each part of its life, without a thread of the registrar's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from synthgen.errors import EngineGone, FatalError, ServiceUnavailable, Unreachable
from synthgen.response import Reply
from synthgen.workers import WorkerState, WorkerStatus
from tasks.registrar import Registrar, beat_interval, registered
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_engine import Answer, Gate, Lanes, ScriptedEngine, all_of, requests
from tests.fakes.worker_registry import FakeWorkerRegistry

EVERY = 5.0
S = WorkerState


class Bench:
    """A lane, a registrar that ticks when it is told to, and what it has told."""

    def __init__(self, lanes: Lanes, answer: Answer = lambda request, number: Reply(b"{}", 10, 5)) -> None:
        self.clock = FakeClock()
        self.registry = FakeWorkerRegistry(self.clock)
        self.engine = ScriptedEngine(answer)
        self.lane = lanes(self.engine, in_flight=8)
        self.gone: list[str] = []
        self.memory: int | None = None
        self.beats: list[WorkerStatus] = []
        beat = self.registry.beat

        def watched(status: WorkerStatus) -> None:
            beat(status)
            self.beats.append(status)

        self.registry.beat = watched  # type: ignore[method-assign]
        self.registrar = Registrar(
            self.registry,
            self.lane,
            worker_id="me",
            pool="gpu",
            every=EVERY,
            on_gone=self.gone.append,
            gpu_memory=lambda: self.memory,
            now=self.clock.monotonic,
        )

    def tick(self, after: float = 0.0) -> WorkerStatus | None:
        """The beat of one tick, None when it told nothing."""
        self.clock.advance(after)
        before = len(self.beats)
        self.registrar.tick()
        return self.beats[-1] if len(self.beats) > before else None

    def state(self, after: float = EVERY) -> WorkerState:
        status = self.tick(after)
        assert status is not None
        return status.state

    def listed(self) -> list[WorkerStatus]:
        return self.registry.workers(silent_for=60)


Make = Callable[..., Bench]


@pytest.fixture
def bench_with(lane_with: Lanes) -> Make:
    return lambda *args, **options: Bench(lane_with, *args, **options)


@pytest.fixture
def bench(bench_with: Make) -> Bench:
    return bench_with()


def serving(bench: Bench) -> Bench:
    bench.registrar.serve()
    assert bench.state(0) is S.IDLE
    return bench


def test_three_beats_may_be_lost_before_a_worker_is_taken_for_gone() -> None:
    assert 3 * beat_interval(20.0) < 20.0


def test_a_worker_is_known_before_its_engine_starts_and_says_each_step_at_once(bench: Bench) -> None:
    assert bench.state(0) is S.STARTING
    bench.registrar.warm()
    assert bench.state(0) is S.WARMING
    bench.registrar.serve()
    assert bench.state(0) is S.IDLE
    bench.registrar.drain()
    assert bench.state(0) is S.DRAINING


def test_what_it_says_is_the_engines(bench: Bench) -> None:
    bench.engine.models, bench.engine.version = ("m", "lora"), "1.2.3"
    bench.memory = 2**30
    status = bench.tick()
    assert status is not None
    assert (status.id, status.pool, status.engine, status.engine_version, status.models) == (
        "me",
        "gpu",
        "scripted",
        "1.2.3",
        ("m", "lora"),
    )
    assert (status.in_flight, status.capacity, status.gpu_memory, status.reason) == (0, 8, 2**30, None)


def test_without_news_it_beats_only_when_it_is_time(bench: Bench) -> None:
    serving(bench)
    assert bench.tick(EVERY / 2) is None
    assert bench.tick(EVERY / 2) is not None
    assert bench.tick(EVERY / 2) is None


def test_it_is_busy_while_requests_are_in_flight(bench_with: Make) -> None:
    gate = Gate()
    bench = serving(bench_with(lambda request, number: gate.reply()))
    asking = bench.lane.ask(requests(3))
    gate.wait_for_somebody()
    status = bench.tick()
    assert status is not None
    assert (status.state, status.in_flight) == (S.BUSY, 3)
    gate.open()
    all_of(asking)


def test_a_worker_whose_engine_sleeps_says_so(bench: Bench) -> None:
    serving(bench)
    bench.engine.asleep = True
    assert bench.state(0) is S.ASLEEP


def test_answers_between_two_looks_count_as_work_and_make_its_rates(bench: Bench) -> None:
    serving(bench)
    all_of(bench.lane.ask(requests(20)))
    status = bench.tick(EVERY)
    assert status is not None
    assert (status.state, status.requests_per_second, status.tokens_per_second) == (S.BUSY, 4.0, 60.0)
    assert bench.state() is S.IDLE


def test_rates_are_of_the_last_beats_only(bench: Bench) -> None:
    serving(bench)
    all_of(bench.lane.ask(requests(20)))
    for _ in range(5):
        bench.tick(EVERY)
    assert (bench.beats[-1].requests_per_second, bench.beats[-2].requests_per_second) == (0.0, 1.0)


def test_a_worker_whose_engine_is_started_again_is_warming(bench: Bench) -> None:
    serving(bench)
    bench.engine.ready, bench.engine.broken = False, Unreachable("The server is down.")
    assert bench.state() is S.WARMING
    bench.engine.ready, bench.engine.broken = True, None
    assert bench.state() is S.IDLE
    assert bench.gone == []


def test_an_engine_that_is_given_up_while_nobody_asks_ends_the_worker_with_its_reason(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    serving(bench)
    bench.engine.ready = False
    bench.engine.broken = EngineGone("It died 5 times. Its last lines:\n    boom", code="engine_gone")
    with caplog.at_level(logging.INFO):
        status = bench.tick()
    assert status is not None
    assert (status.state, status.reason) == (S.FAILED, "It died 5 times.")
    assert bench.state() is S.FAILED
    assert bench.gone == ["It died 5 times. Its last lines:\n    boom"]
    assert "worker is failed: It died 5 times." in caplog.text


def test_a_lane_that_found_its_engine_gone_ends_the_worker_too(bench: Bench) -> None:
    serving(bench)
    bench.lane.gone = "No more."
    bench.registrar.drain()
    assert bench.state(0) is S.FAILED
    assert bench.gone == ["No more."]


def test_an_engine_that_is_not_up_yet_is_left_to_whoever_starts_it(bench: Bench) -> None:
    bench.engine.ready, bench.engine.broken = False, EngineGone("Gone.", code="engine_gone")
    bench.registrar.warm()
    assert bench.state() is S.WARMING
    assert bench.gone == []


def test_a_worker_that_ends_in_good_order_is_forgotten(bench: Bench) -> None:
    with registered(bench.registrar):
        assert [worker.state for worker in bench.listed()] == [S.STARTING]
    assert bench.listed() == []


def test_a_worker_that_ends_because_a_shard_found_the_engine_gone_leaves_its_reason_behind(bench: Bench) -> None:
    with registered(bench.registrar):
        bench.lane.gone = "It died."
    assert [(worker.state, worker.reason) for worker in bench.listed()] == [(S.FAILED, "It died.")]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: failed", "bye"], True),
        (["INFO: loading weights", "bye"], False),
    ],
)
def test_the_error_that_an_engine_names_as_the_cause_is_a_part_of_the_reason(
    bench: Bench, words: list[str], shown: bool
) -> None:
    bench.registrar.fail("\n    ".join(["The vllm server ended with code 1. What it said of it:", *words]))
    bench.registrar.close()
    reason = "The vllm server ended with code 1."
    assert [worker.reason for worker in bench.listed()] == [f"{reason} {words[0]}" if shown else reason]


def test_a_worker_that_cannot_start_leaves_its_reason_behind(bench: Bench) -> None:
    with pytest.raises(FatalError), registered(bench.registrar):
        raise FatalError("No such model.", code="engine_gone")
    assert [(worker.state, worker.reason) for worker in bench.listed()] == [(S.FAILED, "No such model.")]


def test_a_worker_that_is_stopped_while_it_starts_is_forgotten(bench: Bench) -> None:
    with pytest.raises(SystemExit), registered(bench.registrar):
        raise SystemExit(0)
    assert bench.listed() == []


def test_a_database_that_is_away_keeps_no_worker_from_ending(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise ServiceUnavailable("The database does not answer.")

    with registered(bench.registrar):
        monkeypatch.setattr(bench.registry, "leave", away)
    assert "the registry was not told that this worker ends" in caplog.text
