"""An attempt that fails half way: nothing is asked after it, what was answered is kept, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from synthgen.batch import Batch
from synthgen.control import cancel, resume
from synthgen.engines.asking import Asking
from synthgen.errors import ServiceUnavailable
from synthgen.request import Request
from synthgen.response import Reply
from synthgen.run_shard import run_shard
from synthgen.states import BatchState, ShardState
from tests.fakes.scripted_engine import PATIENCE, Gate
from tests.workshop import Workshop, echo, gated, questions

Make = Callable[..., Workshop]


async def endless(sent: threading.Event, abandoned: threading.Event) -> Reply:
    """A reply that never comes."""
    sent.set()
    try:
        await asyncio.Event().wait()
    finally:
        abandoned.set()
    raise AssertionError


def failing_once(workshop: Workshop, error: Exception) -> None:
    """The next answers cannot be stored; those after them can."""
    put = workshop.cache.put

    def fails(*_: Any, **__: Any) -> None:
        workshop.cache.put = put  # type: ignore[method-assign]
        raise error

    workshop.cache.put = fails  # type: ignore[method-assign]


def test_an_attempt_that_fails_asks_no_more_and_keeps_what_was_answered(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    failing_once(workshop, RuntimeError("boom"))
    batch = workshop.submitted(questions(5))
    running = workshop.start(batch)
    workshop.wait_until_stopped()
    gate.open()
    assert running.join()
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert workshop.asked == ["line-1", "line-2"]
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked[2:] == ["line-3", "line-4", "line-5"]
    assert workshop.progress(batch)["cached"] == 0


@pytest.mark.parametrize("failed", ["put", "reserve"])
def test_an_attempt_whose_database_is_away_abandons_what_is_in_flight(workshop_with: Make, failed: str) -> None:
    sent, abandoned = threading.Event(), threading.Event()
    workshop = workshop_with(
        lambda request, number: endless(sent, abandoned) if request.custom_id == "line-2" else echo(request, number),
        in_flight=1,
    )
    same = {"prompt": "1+1", "temperature": 0}
    batch = workshop.submitted([*questions(3), same, same])

    def away(*_: Any, **__: Any) -> None:
        assert sent.wait(PATIENCE)
        raise ServiceUnavailable("The database does not answer.")

    setattr(workshop.cache, failed, away)
    with pytest.raises(ServiceUnavailable):
        workshop.start(batch).join()
    assert abandoned.is_set()
    assert "line-3" not in workshop.asked
    assert workshop.shard_states(batch) == [ShardState.PENDING]


def test_a_shard_whose_lane_is_closed_under_it_is_given_back(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(3))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.worker.lane.close()
    assert running.join()
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert len(workshop.cache.entries) == 1


def test_a_line_that_the_lane_forgets_pauses_the_batch_and_is_not_waited_for(workshop: Workshop) -> None:
    lane = workshop.worker.lane
    ask = lane.ask

    def forgetful(requests: Sequence[Request]) -> Asking:
        return ask([request for request in requests if request.custom_id != "line-2"])

    lane.ask = forgetful  # type: ignore[method-assign]
    batch = workshop.submitted(questions(3))
    assert workshop.start(batch).join()
    paused = workshop.store.get(batch.id)
    assert paused.state is BatchState.PAUSED
    assert "Line 2 was asked" in (paused.reason or "")
    assert len(workshop.cache.entries) == 2


# ---- how often


def test_attempts_that_ended_for_good_reasons_are_no_failures(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    for _ in range(10):
        attempt = workshop.store.claim(batch.id, number=0, owner="drained", lease=60)
        assert attempt is not None
        workshop.store.release(attempt)
    failing_once(workshop, RuntimeError("boom"))
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert workshop.run(batch).state is BatchState.COMPLETED


def test_after_a_resume_a_shard_may_fail_as_often_again(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))

    def bug(*_: Any) -> None:
        raise RuntimeError("boom")

    workshop.objects.put = bug  # type: ignore[method-assign, assignment]
    assert workshop.run(batch).state is BatchState.PAUSED
    resume(workshop.services, batch.id)
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


def lose(workshop: Workshop, batch: Batch, times: int) -> None:
    """So many workers die over its first shard, and no handler of ours sees why."""
    for _ in range(times):
        assert workshop.store.claim(batch.id, number=0, owner="dead", lease=60)
        workshop.store.rescue(owners=["dead"])


def test_a_shard_that_ends_its_worker_again_and_again_pauses_its_batch(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    lose(workshop, batch, 5)
    paused = workshop.run(batch)
    assert (paused.state, workshop.asked) == (BatchState.PAUSED, [])
    assert "Shard 0 has ended its worker 5 times" in (paused.reason or "")
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    resume(workshop.services, batch.id)
    assert workshop.run(batch).state is BatchState.COMPLETED


def test_a_shard_that_ended_its_worker_a_few_times_is_tried_again(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    lose(workshop, batch, 4)
    assert workshop.run(batch).state is BatchState.COMPLETED


def test_a_shard_that_ends_its_workers_can_still_be_cancelled(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    lose(workshop, batch, 9)
    assert cancel(workshop.services, batch.id).state is BatchState.CANCELLED


# ---- between the claim and the first question


def test_a_shard_is_kept_alive_and_given_back_while_the_next_ones_are_sent(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), pool="gpu")

    def slow(*_: Any, **__: Any) -> list[int]:
        for _beat in range(2):
            workshop.clock.advance(workshop.limits.lease - 1)
            workshop.worker.keeper.beat()
            assert workshop.store.rescue() == []
        raise ServiceUnavailable("The database does not answer.")

    workshop.store.queue_window = slow  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.shard_states(batch) == [ShardState.PENDING]
