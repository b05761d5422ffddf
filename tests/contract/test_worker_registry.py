"""What every registry keeps of workers: their last words, for as long as these mean something."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest

from synthgen.ports import WorkerRegistry
from synthgen.workers import FAILED_SHOWN, WorkerState, WorkerStatus
from tests.contract.conftest import Later
from tests.examples import some_worker

SILENT = 20.0


def listed(registry: WorkerRegistry) -> list[WorkerStatus]:
    return registry.workers(silent_for=SILENT)


def ids(registry: WorkerRegistry) -> list[str]:
    return [worker.id for worker in listed(registry)]


def test_a_worker_comes_back_as_it_said_it_is(registry: WorkerRegistry) -> None:
    said = some_worker(
        models=("m", "adapter-ü"),
        state=WorkerState.BUSY,
        in_flight=17,
        requests_per_second=3.5,
        tokens_per_second=1234.5,
        gpu_memory=80 * 2**30,
    )
    registry.beat(said)
    (found,) = listed(registry)
    assert replace(found, started_at=said.started_at, beat_at=said.beat_at) == said
    assert found.started_at.tzinfo is UTC
    assert found.beat_at == found.started_at


def test_what_is_not_known_stays_unknown(registry: WorkerRegistry) -> None:
    registry.beat(some_worker(engine_version=None, models=(), reason=None, gpu_memory=None))
    (found,) = listed(registry)
    assert (found.engine_version, found.models, found.reason, found.gpu_memory) == (None, (), None, None)


def test_a_later_beat_replaces_all_but_the_start(registry: WorkerRegistry, later: Later) -> None:
    registry.beat(some_worker(state=WorkerState.WARMING, engine_version=None, models=()))
    later(5)
    registry.beat(some_worker(state=WorkerState.IDLE, engine_version="1.2", models=("a",), pool="other", capacity=8))
    (found,) = listed(registry)
    assert (found.state, found.engine_version, found.models, found.pool, found.capacity) == (
        WorkerState.IDLE,
        "1.2",
        ("a",),
        "other",
        8,
    )
    assert 4.5 < (found.beat_at - found.started_at).total_seconds() < 60


@pytest.mark.parametrize("state", WorkerState)
def test_every_state_can_be_told(registry: WorkerRegistry, state: WorkerState) -> None:
    registry.beat(some_worker(state=state, reason="nul \0 from an engine"))
    (found,) = listed(registry)
    assert found.state is state
    assert (found.reason or "").startswith("nul ")


def test_a_silent_worker_is_taken_for_gone_and_the_others_stay(registry: WorkerRegistry, later: Later) -> None:
    registry.beat(some_worker("silent"))
    later(SILENT - 5)
    registry.beat(some_worker("beating"))
    assert ids(registry) == ["silent", "beating"]
    later(10)
    assert ids(registry) == ["beating"]


def test_a_worker_that_was_only_slow_is_back_with_its_next_beat(registry: WorkerRegistry, later: Later) -> None:
    registry.beat(some_worker())
    later(SILENT + 5)
    assert ids(registry) == []
    registry.beat(some_worker())
    assert ids(registry) == ["host-1/ns/1/1.00"]


def test_a_failed_worker_says_why_for_a_while_after_its_end(registry: WorkerRegistry, later: Later) -> None:
    registry.beat(some_worker(state=WorkerState.FAILED, reason="The engine died 5 times."))
    later(FAILED_SHOWN - 30)
    assert [worker.reason for worker in listed(registry)] == ["The engine died 5 times."]
    later(60)
    assert ids(registry) == []


def test_a_worker_that_leaves_is_forgotten_at_once_and_may_leave_again(registry: WorkerRegistry) -> None:
    registry.beat(some_worker("a"))
    registry.beat(some_worker("b"))
    registry.leave("a")
    registry.leave("a")
    assert ids(registry) == ["b"]


def test_workers_are_listed_by_pool_and_then_by_start(registry: WorkerRegistry, later: Later) -> None:
    for name, pool in (("3", "b"), ("2", "a"), ("1", "a")):
        registry.beat(some_worker(name, pool=pool))
        later(1)
    assert ids(registry) == ["2", "1", "3"]
