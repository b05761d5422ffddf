"""A shard that is told to stop: by its worker, or by a batch that pauses, is cancelled or expires."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from synthgen.control import cancel, pause, resume
from synthgen.errors import SynthgenError
from synthgen.response import Reply
from synthgen.results import Which
from synthgen.run_shard import close_shards, given_up, run_shard
from synthgen.states import BatchState, ShardState
from synthgen.upkeep import move_on
from tests.fakes.object_store import FakeObjects
from tests.fakes.scripted_engine import PATIENCE, Gate
from tests.workshop import WRONG_KEY, Workshop, echo, error_codes, failing, gated, ids, questions

Make = Callable[..., Workshop]


def test_a_stopping_worker_drains_what_is_in_flight_and_gives_its_shard_back(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(5))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.worker.stopping.set()
    workshop.wait_until_stopped()
    gate.open()
    assert running.join()
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert workshop.asked == ["line-1", "line-2"]
    assert len(workshop.cache.entries) == 2

    fresh = workshop.another_worker(workshop.engine)
    workshop.engine.answer = echo
    assert workshop.run(batch, worker=fresh).state is BatchState.COMPLETED
    assert workshop.asked[2:] == ["line-3", "line-4", "line-5"]
    assert workshop.progress(batch)["cached"] == 0


def test_when_the_grace_is_over_what_is_in_flight_is_abandoned(workshop_with: Make) -> None:
    sent, abandoned = threading.Event(), threading.Event()

    async def endless() -> Reply:
        sent.set()
        try:
            await asyncio.Event().wait()
        finally:
            abandoned.set()
        raise AssertionError

    workshop = workshop_with(
        lambda request, number: endless() if request.custom_id == "line-2" else echo(request, number),
        in_flight=1,
        grace=0.0,
    )
    batch = workshop.submitted(questions(3))
    running = workshop.start(batch)
    assert sent.wait(PATIENCE)
    workshop.worker.stopping.set()
    assert running.join()
    assert abandoned.is_set()
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert len(workshop.cache.entries) == 1


def test_a_shard_that_was_given_back_is_sent_again_at_once(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), pool="gpu")
    workshop.worker.stopping.set()
    run_shard(workshop.services, workshop.worker, batch.id, number=0)
    assert workshop.shard_states(batch) == [ShardState.QUEUED]
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0)] * 2


def test_a_paused_batch_gets_its_shard_back_with_the_checkpoint_kept(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(4))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    pause(workshop.services, batch.id)
    workshop.worker.keeper.beat()
    workshop.wait_until_stopped()
    gate.open()
    assert running.join()
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
    workshop.engine.answer = echo
    resume(workshop.services, batch.id)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked == ["line-1", "line-2", "line-3", "line-4"]


@pytest.mark.parametrize(
    ("ending", "code", "final"),
    [("cancel", "batch_cancelled", BatchState.CANCELLED), ("expire", "batch_expired", BatchState.EXPIRED)],
)
def test_a_batch_that_ends_mid_shard_keeps_finished_rows_and_says_why_the_others_never_ran(
    workshop_with: Make, ending: str, code: str, final: BatchState
) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(6), shard_requests=4, completion_window=3600)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    if ending == "cancel":
        assert cancel(workshop.services, batch.id).state is BatchState.CANCELLING
    else:
        workshop.clock.advance(3600)
        move_on(workshop.services, workshop.store.get(batch.id))
    workshop.worker.keeper.beat()
    workshop.wait_until_stopped()
    gate.open()
    assert running.join()
    assert workshop.store.get(batch.id).state is final
    results = workshop.results(batch)
    assert ids(results) == [f"line-{n}" for n in range(1, 7)]
    assert error_codes(results) == [None, None, *[code] * 4]
    assert [line["error"] and line["error"]["code"] for line in results] == [None, None, *[code] * 4]
    assert workshop.shard_states(batch) == [ShardState.DONE, ShardState.CANCELLED]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["failed"], progress["pending"]) == (2, 4, 0)
    assert sum(group.count for group in workshop.store.error_groups(batch.id)) == 4


def test_an_attempt_from_before_a_resume_does_not_pause_the_repaired_batch_again(workshop_with: Make) -> None:
    gate = Gate()

    async def refused() -> Reply:
        await gate.reply()
        raise WRONG_KEY

    workshop = workshop_with(lambda request, number: refused(), in_flight=1)
    batch = workshop.submitted(questions(2))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    pause(workshop.services, batch.id, reason="The key is wrong.")
    resume(workshop.services, batch.id)
    gate.open()
    assert running.join()
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    workshop.engine.answer = failing({"line-1": WRONG_KEY})
    fresh = workshop.another_worker(workshop.engine)
    assert workshop.run(batch, worker=fresh).reason == WRONG_KEY.message


def test_a_shard_that_was_given_back_is_closed_without_an_engine_and_keeps_its_checkpoint(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    workshop.engine.answer = failing({"line-3": WRONG_KEY})
    workshop.run(batch)
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
    assert cancel(workshop.services, batch.id).state is BatchState.CANCELLED
    results = workshop.results(batch)
    assert error_codes(results) == [None, None, "batch_cancelled"]
    assert [line["synthgen"]["cached"] for line in results[:2]] == [False, False]


def test_closing_a_batch_that_goes_on_touches_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    assert close_shards(workshop.services, batch.id) == 0
    assert workshop.shard_states(batch) == [ShardState.PENDING]


@pytest.mark.parametrize("input_is", ["gone", "changed"])
def test_a_batch_that_is_cancelled_without_its_input_keeps_what_is_sealed_and_counts_the_rest_as_never_run(
    workshop: Workshop, input_is: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = workshop.submitted(questions(5), shard_requests=2, completion_window=60)
    run_shard(workshop.services, workshop.worker, batch.id)
    if input_is == "gone":
        workshop.objects.delete([batch.input_key])
    else:
        workshop.objects.put(batch.input_key, b"{}\n")
    run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
    workshop.clock.advance(60)
    with pytest.raises(SynthgenError):  # the storage may only be away from here: a person has to say so
        move_on(workshop.services, workshop.store.get(batch.id))
    with pytest.raises(SynthgenError, match=f"synthgen cancel --give-up {batch.id}"):
        cancel(workshop.services, batch.id)
    assert workshop.store.get(batch.id).state is BatchState.CANCELLING
    assert cancel(workshop.services, batch.id, give_up=True).state is BatchState.CANCELLED
    assert [record.name for record in caplog.records if "given up" in record.message] == [given_up.name]
    assert workshop.shard_states(batch) == [ShardState.DONE, ShardState.CANCELLED, ShardState.CANCELLED]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["failed"], progress["pending"]) == (2, 3, 0)
    assert ids(workshop.results(batch, Which.SUCCEEDED)) == ["line-1", "line-2"]
    assert workshop.submitted(questions(5), shard_requests=2, completion_window=60).id != batch.id


def test_a_cancel_that_does_not_see_the_storage_leaves_paid_answers_to_whoever_sees_it(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    workshop.engine.answer = failing({"line-3": WRONG_KEY})
    workshop.run(batch)
    blind = replace(workshop.services, objects=FakeObjects())
    with pytest.raises(SynthgenError, match="SYNTHGEN_STORAGE_URL"):
        cancel(blind, batch.id)
    assert workshop.store.get(batch.id).state is BatchState.CANCELLING
    assert cancel(workshop.services, batch.id).state is BatchState.CANCELLED
    assert error_codes(workshop.results(batch)) == [None, None, "batch_cancelled"]


def test_a_worker_that_stops_before_it_begins_asks_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    workshop.worker.stopping.set()
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.asked == []
    assert workshop.shard_states(batch) == [ShardState.PENDING]
