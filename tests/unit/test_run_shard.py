"""One shard from its claim to its end, in every way it can end; the engine is scripted, the lane real."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from synthgen.batch import Batch, CacheMode
from synthgen.control import resume
from synthgen.errors import EngineGone, ServiceUnavailable
from synthgen.request import Request
from synthgen.response import Reply
from synthgen.results import Which
from synthgen.run_shard import run_shard
from synthgen.states import BatchState, ShardState
from tests.fakes.scripted_engine import PATIENCE, Gate, ScriptedEngine
from tests.workshop import (
    REFUSED,
    WRONG_KEY,
    Background,
    Killed,
    Workshop,
    echo,
    failing,
    gated,
    ids,
    questions,
)

Make = Callable[..., Workshop]


# ---- to a good end


def test_a_batch_runs_to_its_end_with_one_answer_for_every_line_in_order(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(7), shard_requests=3)
    ended = workshop.run(batch)
    assert ended.state is BatchState.COMPLETED
    results = workshop.results(batch)
    assert ids(results) == [f"line-{n}" for n in range(1, 8)]
    assert [line["response"]["body"]["choices"][0]["message"]["content"] for line in results] == [
        f"re: question {n}" for n in range(1, 8)
    ]
    assert sorted(workshop.asked) == sorted(ids(results))
    progress = workshop.progress(batch)
    assert (progress["total"], progress["succeeded"], progress["cached"], progress["pending"]) == (7, 7, 0, 0)
    assert (progress["prompt_tokens"], progress["completion_tokens"], progress["cost"]) == (14, 21, 3.5)


def test_an_output_line_says_how_it_was_made(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    workshop.run(batch)
    (line,) = workshop.results(batch)
    assert line["response"]["request_id"] == "req-line-1"
    ours = line["synthgen"]
    assert (ours["line"], ours["cached"], ours["attempts"], ours["cost"]) == (1, False, 1, 0.5)
    assert (ours["engine"], ours["model"]) == ("scripted", "m")


def test_nothing_to_claim_is_told(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert not run_shard(workshop.services, workshop.worker, batch.id)
    assert not run_shard(workshop.services, workshop.worker, batch.id, number=0)
    assert not run_shard(workshop.services, workshop.worker, "batch_of_nobody")


def test_a_message_may_name_its_shard_and_come_twice(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    assert run_shard(workshop.services, workshop.worker, batch.id, number=1)
    assert not run_shard(workshop.services, workshop.worker, batch.id, number=1)
    assert workshop.shard_states(batch) == [ShardState.PENDING, ShardState.DONE]
    assert sorted(workshop.asked) == ["line-3", "line-4"]


def test_a_shard_that_ends_lets_the_next_be_sent(workshop_with: Make) -> None:
    workshop = workshop_with(window=1)
    batch = workshop.submitted(questions(3), shard_requests=1, pool="gpu")
    for number in range(3):
        assert run_shard(workshop.services, workshop.worker, batch.id, number=number)
    assert sorted(number for _, _, number in workshop.dispatcher.sent) == [0, 1, 2]


def test_the_model_of_the_engine_serves_where_none_is_named(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1), model=None)
    worker = workshop.another_worker(workshop.engine, model="engines-own")
    workshop.run(batch, worker=worker)
    assert workshop.results(batch)[0]["synthgen"]["model"] == "engines-own"


def test_refused_requests_are_failures_beside_the_others_and_the_batch_completes(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(3))
    assert workshop.run(batch).state is BatchState.COMPLETED
    good, bad = workshop.results(batch, Which.SUCCEEDED), workshop.results(batch, Which.FAILED)
    assert (ids(good), ids(bad)) == (["line-1", "line-3"], ["line-2"])
    assert bad[0]["response"]["status_code"] == 400
    assert bad[0]["error"] is None
    stored = workshop.store.find_request(batch.id, custom_id="line-2").row
    assert (stored.succeeded, stored.error_code, stored.error_message) == (
        False,
        "context_length_exceeded",
        "Too long.",
    )


def test_a_failure_is_never_cached(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-1": REFUSED}))
    workshop.run(workshop.submitted(questions(2)))
    assert len(workshop.cache.entries) == 1
    workshop.run(workshop.submitted(questions(2)))
    assert workshop.asked.count("line-1") == 2
    assert workshop.asked.count("line-2") == 1


# ---- the checkpoint


def test_answers_reach_the_cache_while_others_are_still_in_flight(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-4"), in_flight=4)
    batch = workshop.submitted(questions(4))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.cache.wait_for_entries(3)
    assert workshop.shard_states(batch) == [ShardState.RUNNING]
    gate.open()
    assert running.join()


def test_progress_shows_what_was_checkpointed(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(3))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.cache.wait_for_entries(1)
    put, shown = workshop.cache.put, []

    def looking(*args: Any, **options: Any) -> None:
        workshop.worker.keeper.beat()
        shown.append(workshop.progress(batch))
        put(*args, **options)

    workshop.cache.put = looking  # type: ignore[method-assign]
    gate.open()
    assert running.join()
    first = shown[0]
    assert (first["succeeded"], first["running"], first["pending"], first["cost"]) == (1, 2, 0, 0.5)


@pytest.mark.parametrize("mode", CacheMode)
def test_after_a_crash_only_what_was_in_flight_is_asked_again_and_the_rest_counts_as_paid(
    workshop_with: Make, mode: CacheMode
) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-4"), in_flight=1)
    batch = workshop.submitted(questions(6), cache=mode)
    crashing = workshop.another_worker(workshop.engine)
    dying = _dying_after(workshop, crashing, gate, entries=3, batch_id=batch.id)
    with pytest.raises(Killed):
        dying.join()

    workshop.engine.answer = echo
    workshop.clock.advance(workshop.limits.lease + 1)
    workshop.store.rescue()
    asked = len(workshop.asked)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked[asked:] == ["line-4", "line-5", "line-6"]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["cached"], progress["cost"]) == (6, 0, 3.0)
    assert [line["synthgen"]["attempts"] for line in workshop.results(batch)] == [1] * 6


def _dying_after(workshop: Workshop, worker: Any, gate: Gate, *, entries: int, batch_id: str) -> Background:
    """Run a shard and end its thread, as a kill would, at the checkpoint after so many answers."""
    put = workshop.cache.put
    died = threading.Event()

    def dies(*args: Any, **options: Any) -> None:
        put(*args, **options)
        if len(workshop.cache.entries) >= entries:
            died.set()
            raise Killed

    workshop.cache.put = dies  # type: ignore[method-assign]
    running = Background(lambda: run_shard(workshop.services, worker, batch_id))
    gate.wait_for_somebody()
    assert died.wait(PATIENCE)
    workshop.cache.put = put  # type: ignore[method-assign]
    worker.lane.close()
    return running


def test_what_another_batch_paid_for_counts_as_cached_also_after_a_crash(workshop: Workshop) -> None:
    workshop.run(workshop.submitted(questions(2)))
    batch = workshop.submitted(questions(3))
    seal = workshop.store.seal

    def killed(*_: Any) -> None:
        raise Killed

    workshop.store.seal = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        workshop.run(batch)
    workshop.store.seal = seal  # type: ignore[method-assign]
    workshop.clock.advance(workshop.limits.lease + 1)
    workshop.store.rescue()
    workshop.run(batch)
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["cached"], progress["cost"], progress["saved"]) == (3, 2, 0.5, 1.0)
    assert len(workshop.asked) == 3


# ---- the lease


def test_an_attempt_that_lost_its_lease_writes_nothing(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(3))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.cache.wait_for_entries(1)
    workshop.clock.advance(workshop.limits.lease + 1)
    assert workshop.store.rescue() == [batch.id]
    other = workshop.another_worker(ScriptedEngine(echo))
    assert run_shard(workshop.services, other, batch.id)
    before = dict(workshop.objects.objects), len(workshop.cache.entries), list(workshop.store.shards(batch.id))
    workshop.worker.keeper.beat()
    assert running.join()
    assert (
        dict(workshop.objects.objects),
        len(workshop.cache.entries),
        list(workshop.store.shards(batch.id)),
    ) == before
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED


def test_answers_that_come_after_the_loss_are_not_stored(workshop: Workshop) -> None:
    def taken_away(request: Request, number: int) -> Reply:
        if request.custom_id == "line-2":
            workshop.store.rescue(owners=["owner-1"])
            workshop.store.claim(batch.id, number=0, owner="other", lease=60)
            workshop.worker.keeper.beat()
        return echo(request, number)

    workshop.engine.answer = taken_away
    batch = workshop.submitted(questions(2))
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert b"question 2" not in b"".join(entry.body for entry in workshop.cache.entries)
    assert workshop.shard_states(batch) == [ShardState.RUNNING]


def test_an_attempt_that_hears_of_its_loss_only_at_the_seal_removes_its_object(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(2))
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.clock.advance(workshop.limits.lease + 1)
    workshop.store.rescue()
    assert run_shard(workshop.services, workshop.another_worker(ScriptedEngine(echo)), batch.id)
    before = dict(workshop.objects.objects)
    gate.open()
    assert running.join()
    assert workshop.objects.objects == before
    assert len(workshop.results(batch)) == 2


def test_what_was_checkpointed_too_late_is_removed_with_the_batch_that_has_ended(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(2), cache=CacheMode.OFF)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.store.rescue(owners=["owner-1"])
    workshop.run(batch, worker=workshop.another_worker(ScriptedEngine(echo)))
    assert workshop.cache.stats() == []
    gate.open()
    assert running.join()
    assert workshop.cache.stats() == []


def test_what_was_checkpointed_too_late_is_removed_also_while_the_batch_is_ending(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-2"), in_flight=1)
    batch = workshop.submitted(questions(2), cache=CacheMode.OFF)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.store.rescue(owners=["owner-1"])
    move = workshop.store.move

    def ending(batch_id: str, to: BatchState, **options: Any) -> Batch:
        if to is BatchState.COMPLETED:
            workshop.store.move = move  # type: ignore[method-assign]
            gate.open()
            assert running.join()
        return move(batch_id, to, **options)

    workshop.store.move = ending  # type: ignore[method-assign]
    ended = workshop.run(batch, worker=workshop.another_worker(ScriptedEngine(echo)))
    assert ended.state is BatchState.COMPLETED
    assert workshop.cache.stats() == []


# ---- a broken engine, a broken store


def test_a_fatal_error_pauses_the_batch_and_burns_nothing(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-3": WRONG_KEY}), in_flight=1)
    batch = workshop.submitted(questions(5), pool="gpu")
    paused = workshop.run(batch)
    assert (paused.state, paused.reason) == (BatchState.PAUSED, WRONG_KEY.message)
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    progress = workshop.progress(batch)
    assert (progress["failed"], progress["pending"]) == (0, 5)
    assert list(workshop.store.failures(batch.id)) == []

    workshop.engine.answer = echo
    resume(workshop.services, batch.id)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked == ["line-1", "line-2", "line-3", "line-3", "line-4", "line-5"]
    assert workshop.progress(batch)["cost"] == 2.5


def test_two_shards_that_meet_the_same_fatal_error_pause_the_batch_once(workshop_with: Make) -> None:
    workshop = workshop_with(lambda request, number: WRONG_KEY)
    batch = workshop.submitted(questions(2), shard_requests=1)
    first = workshop.store.claim(batch.id, number=1, owner="x", lease=60)
    assert first is not None
    workshop.run(batch)
    workshop.store.release(first)
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
    assert not run_shard(workshop.services, workshop.worker, batch.id)


def test_an_engine_that_is_gone_ends_its_worker_and_the_batch_goes_on_elsewhere(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": EngineGone("The server died.", code="engine_gone")}), in_flight=1)
    batch = workshop.submitted(questions(3))
    assert run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.worker.stopping.is_set()
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    other = ScriptedEngine(echo)
    assert workshop.run(batch, worker=workshop.another_worker(other)).state is BatchState.COMPLETED
    assert [custom_id for custom_id, _ in other.asked] == ["line-2", "line-3"]


def test_a_shard_that_takes_every_engine_with_it_is_not_passed_on_for_ever(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": EngineGone("The server died 10 times.", code="engine_gone")}))
    batch = workshop.submitted(questions(3))
    for _ in range(4):
        assert run_shard(workshop.services, workshop.worker, batch.id)
        assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
        workshop.worker.stopping.clear()
    assert run_shard(workshop.services, workshop.worker, batch.id)
    paused = workshop.store.get(batch.id)
    assert workshop.worker.stopping.is_set()
    assert (paused.state, workshop.shard_states(batch)) == (BatchState.PAUSED, [ShardState.PENDING])
    assert "Shard 0 was begun 5 times" in (paused.reason or "")
    assert "The server died 10 times." in (paused.reason or "")


def test_a_missing_input_pauses_the_batch_with_a_sentence(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    workshop.objects.delete([batch.input_key])
    paused = workshop.run(batch)
    assert paused.state is BatchState.PAUSED
    assert batch.input_key in (paused.reason or "")
    assert workshop.asked == []


def test_an_input_that_was_changed_pauses_the_batch_with_a_sentence(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    content = workshop.objects.get(batch.input_key)
    workshop.objects.put(batch.input_key, b"x" * len(content))
    paused = workshop.run(batch)
    assert paused.state is BatchState.PAUSED
    assert "was changed" in (paused.reason or "")


def test_storage_that_is_away_gives_the_shard_back_and_is_told(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))

    def away(*_: Any, **__: Any) -> None:
        raise ServiceUnavailable("The object store does not answer.")

    workshop.objects.put = away  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        run_shard(workshop.services, workshop.worker, batch.id)
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    del workshop.objects.put  # type: ignore[method-assign]
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert len(workshop.asked) == 2


def test_an_unexpected_error_gives_the_shard_back_twice_and_then_pauses_the_batch(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))

    def bug(*_: Any) -> None:
        raise RuntimeError("boom")

    workshop.objects.put = bug  # type: ignore[method-assign]
    for _ in range(2):
        assert run_shard(workshop.services, workshop.worker, batch.id)
        assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
        assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert run_shard(workshop.services, workshop.worker, batch.id)
    paused = workshop.store.get(batch.id)
    assert paused.state is BatchState.PAUSED
    assert paused.reason == "Shard 0 failed again and again: RuntimeError('boom')."
    assert workshop.shard_states(batch) == [ShardState.PENDING]
