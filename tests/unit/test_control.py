"""What a user may do to a batch, tried in every state that a batch can be in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from synthgen.batch import Batch
from synthgen.control import cancel, pause, remove, resume, retry
from synthgen.errors import NotFound, StateConflict, SynthgenError
from synthgen.owner import current_owner
from synthgen.run_shard import run_shard
from synthgen.sharding import PREFIX
from synthgen.states import ENDED, BatchState
from synthgen.upkeep import move_on
from tests.fakes.scripted_engine import Gate
from tests.workshop import REFUSED, WRONG_KEY, Workshop, echo, error_codes, failing, gated, questions

Make = Callable[..., Workshop]
_B = BatchState

WAY_TO: dict[BatchState, list[BatchState]] = {
    _B.IN_PROGRESS: [],
    _B.PAUSED: [_B.PAUSED],
    _B.FINALIZING: [_B.FINALIZING],
    _B.COMPLETED: [_B.FINALIZING, _B.COMPLETED],
    _B.CANCELLING: [_B.CANCELLING],
    _B.CANCELLED: [_B.CANCELLING, _B.CANCELLED],
    _B.EXPIRED: [_B.EXPIRED],
}


def batch_in(workshop: Workshop, state: BatchState) -> Batch:
    """A batch in that state, one of whose two shards is held by a worker elsewhere."""
    batch = workshop.submitted(questions(4), shard_requests=2, pool="gpu")
    workshop.store.claim(batch.id, number=0, owner="elsewhere", lease=60)
    for step in WAY_TO[state]:
        workshop.store.move(batch.id, step)
    return workshop.store.get(batch.id)


OUTCOMES: dict[str, tuple[Callable[..., object], dict[BatchState, BatchState]]] = {
    "pause": (pause, {_B.IN_PROGRESS: _B.PAUSED, _B.PAUSED: _B.PAUSED}),
    "resume": (resume, {_B.IN_PROGRESS: _B.IN_PROGRESS, _B.PAUSED: _B.IN_PROGRESS}),
    "cancel": (
        cancel,
        {
            _B.IN_PROGRESS: _B.CANCELLING,
            _B.PAUSED: _B.CANCELLING,
            _B.CANCELLING: _B.CANCELLING,
            _B.CANCELLED: _B.CANCELLED,
        },
    ),
}


@pytest.mark.parametrize("operation", OUTCOMES)
@pytest.mark.parametrize("state", WAY_TO)
def test_each_operation_works_in_its_states_and_is_refused_in_all_others(
    workshop: Workshop, operation: str, state: BatchState
) -> None:
    act, outcomes = OUTCOMES[operation]
    batch = batch_in(workshop, state)
    if state in outcomes:
        act(workshop.services, batch.id)
        assert workshop.store.get(batch.id).state is outcomes[state]
    else:
        with pytest.raises(StateConflict):
            act(workshop.services, batch.id)
        assert workshop.store.get(batch.id) == batch


@pytest.mark.parametrize("act", [retry, remove])
@pytest.mark.parametrize("state", WAY_TO)
def test_only_an_ended_batch_is_retried_or_removed(
    workshop: Workshop, act: Callable[..., object], state: BatchState
) -> None:
    batch = batch_in(workshop, state)
    if state in ENDED:
        act(workshop.services, batch.id)
        return
    with pytest.raises(StateConflict):
        act(workshop.services, batch.id)
    assert workshop.store.get(batch.id) == batch


@pytest.mark.parametrize("act", [pause, resume, cancel, retry, remove])
def test_a_batch_that_does_not_exist_is_not_found(workshop: Workshop, act: Callable[..., object]) -> None:
    with pytest.raises(NotFound):
        act(workshop.services, "batch_of_nobody")


def test_a_pause_has_its_reason_and_resume_clears_it(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    assert pause(workshop.services, batch.id, reason="Lunch.").reason == "Lunch."
    assert pause(workshop.services, batch.id, reason="Tea.").reason == "Lunch."
    assert resume(workshop.services, batch.id).reason is None


def test_a_resume_that_a_cancel_overtakes_does_not_bring_the_batch_back(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    pause(workshop.services, batch.id)
    move = workshop.store.move

    def overtaken(batch_id: str, to: BatchState, **options: Any) -> Batch:
        workshop.store.move = move  # type: ignore[method-assign]
        cancel(workshop.services, batch.id)
        return move(batch_id, to, **options)

    workshop.store.move = overtaken  # type: ignore[method-assign]
    with pytest.raises(StateConflict):
        resume(workshop.services, batch.id)
    assert workshop.store.get(batch.id).state is _B.CANCELLED


def test_resume_sends_again_what_was_sent_before_the_pause_and_found_nothing_to_claim(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), shard_requests=1)
    assert workshop.dispatcher.sent == []
    pooled = workshop.submitted(questions(2), shard_requests=1, pool="gpu")
    pause(workshop.services, pooled.id)
    assert workshop.store.claim(pooled.id, number=0, owner="x", lease=60) is None
    workshop.dispatcher.sent.clear()
    resume(workshop.services, pooled.id)
    assert workshop.dispatcher.sent == [("gpu", pooled.id, 0), ("gpu", pooled.id, 1)]
    assert workshop.store.get(batch.id).state is _B.IN_PROGRESS


def test_resuming_a_batch_whose_last_shard_was_sealed_while_it_was_paused_ends_it(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    put = workshop.objects.put

    def pausing(key: str, data: bytes) -> None:
        put(key, data)
        if "/results/" in key:
            pause(workshop.services, batch.id)

    workshop.objects.put = pausing  # type: ignore[method-assign]
    workshop.run(batch)
    assert workshop.store.get(batch.id).state is _B.PAUSED
    workshop.objects.put = put  # type: ignore[method-assign]
    assert resume(workshop.services, batch.id).state is _B.COMPLETED


def test_cancelling_a_batch_that_never_began_ends_it_at_once(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    assert cancel(workshop.services, batch.id).state is _B.CANCELLED
    assert [line["error"]["code"] for line in workshop.results(batch)] == ["batch_cancelled"] * 3


def test_cancelling_twice_while_a_worker_still_runs_ends_it_when_the_worker_is_rescued(workshop: Workshop) -> None:
    batch = batch_in(workshop, _B.IN_PROGRESS)
    assert cancel(workshop.services, batch.id).state is _B.CANCELLING
    assert cancel(workshop.services, batch.id).state is _B.CANCELLING
    workshop.store.rescue(owners=["elsewhere"])
    assert cancel(workshop.services, batch.id).state is _B.CANCELLED
    assert len(workshop.results(batch)) == 4


def test_cancel_waits_for_no_process_of_this_machine_that_is_gone(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    place = current_owner().rsplit("/", 2)[0]
    workshop.store.claim(batch.id, number=0, owner=f"{place}/{2**31 - 1}/1.00", lease=3600)
    assert cancel(workshop.services, batch.id).state is _B.CANCELLED
    remove(workshop.services, batch.id)


def test_cancel_keeps_what_is_finished(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    cancel(workshop.services, batch.id)
    assert [line["error"] and line["error"]["code"] for line in workshop.results(batch)] == [
        None,
        None,
        "batch_cancelled",
        "batch_cancelled",
    ]


# ---- retry and remove


def test_retry_with_nothing_failed_changes_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    ended = workshop.run(batch)
    assert retry(workshop.services, batch.id) == 0
    assert workshop.store.get(batch.id) == ended


def test_retry_of_a_cause_that_did_not_happen_changes_nothing(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-1": REFUSED}))
    batch = workshop.submitted(questions(2))
    ended = workshop.run(batch)
    assert retry(workshop.services, batch.id, codes=["server_error"]) == 0
    assert workshop.store.get(batch.id) == ended


def test_retry_sends_the_shards_that_have_failures_and_no_others(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(3), shard_requests=1, pool="gpu")
    workshop.run(batch)
    sent = len(workshop.dispatcher.sent)
    assert retry(workshop.services, batch.id) == 1
    assert workshop.dispatcher.sent[sent:] == [("gpu", batch.id, 1)]


def test_retry_of_an_expired_batch_has_no_window_any_more(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), completion_window=60)
    workshop.clock.advance(61)
    workshop.run(batch)
    assert workshop.store.get(batch.id).state is _B.EXPIRED
    assert retry(workshop.services, batch.id) == 2
    workshop.engine.answer = echo
    assert workshop.run(batch).state is _B.COMPLETED
    assert workshop.progress(batch)["succeeded"] == 2


@pytest.mark.parametrize("shard_requests", [4, 6])
@pytest.mark.parametrize(("final", "code"), [(_B.CANCELLED, "batch_cancelled"), (_B.EXPIRED, "batch_expired")])
def test_a_retry_of_one_cause_runs_nothing_that_never_ran_and_ends_as_the_batch_had_ended(
    workshop_with: Make, final: BatchState, code: str, shard_requests: int
) -> None:
    gate = Gate()
    by_id = {"line-1": lambda *_: REFUSED, "line-2": gated(gate, "line-2")}
    workshop = workshop_with(lambda request, n: by_id.get(request.custom_id, echo)(request, n), in_flight=1)
    batch = workshop.submitted(questions(6), shard_requests=shard_requests, completion_window=3600)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    if final is _B.CANCELLED:
        cancel(workshop.services, batch.id)
    else:
        workshop.clock.advance(3600)
        move_on(workshop.services, workshop.store.get(batch.id))
    workshop.worker.keeper.beat()
    workshop.wait_until_stopped()
    gate.open()
    running.join()
    assert workshop.store.get(batch.id).state is final

    workshop.engine.answer = echo
    asked = len(workshop.asked)
    assert retry(workshop.services, batch.id, codes=[str(REFUSED.code)]) == 1
    assert error_codes(workshop.results(batch))[4:] == [code] * 2
    assert workshop.run(batch).state is final
    assert workshop.asked[asked:] == ["line-1"]
    assert error_codes(workshop.results(batch)) == [None, None, *[code] * 4]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["failed"], progress["pending"]) == (2, 4, 0)

    assert retry(workshop.services, batch.id) == 4
    assert workshop.run(batch).state is _B.COMPLETED


def test_a_removed_batch_leaves_nothing_but_its_answers_in_the_shared_cache(workshop: Workshop) -> None:
    kept = workshop.submitted(questions(1))
    batch = workshop.submitted(questions(2))
    workshop.run(batch)
    remove(workshop.services, batch.id)
    with pytest.raises(NotFound):
        workshop.store.get(batch.id)
    assert list(workshop.objects.list(f"{PREFIX}{batch.id}/")) == []
    assert workshop.objects.get(kept.input_key)
    asked = len(workshop.asked)
    workshop.run(workshop.submitted(questions(2)))
    assert len(workshop.asked) == asked


def test_a_cancel_that_cannot_close_a_shard_says_why(workshop: Workshop) -> None:
    workshop.engine.answer = failing({"line-1": WRONG_KEY})
    batch = workshop.submitted(questions(2))
    workshop.run(batch)

    def bug(*_: object) -> None:
        raise RuntimeError("boom")

    workshop.objects.put = bug  # type: ignore[method-assign]
    with pytest.raises(SynthgenError, match="cannot end: RuntimeError"):
        cancel(workshop.services, batch.id)
    del workshop.objects.put  # type: ignore[method-assign]
    assert cancel(workshop.services, batch.id).state is _B.CANCELLED
