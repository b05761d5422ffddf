"""What crashes, lost messages and passing time leave behind, and that a round of upkeep puts it right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from synthgen.batch import Batch
from synthgen.control import cancel, pause, retry
from synthgen.errors import DatabaseUnavailable, ServiceUnavailable
from synthgen.owner import current_owner
from synthgen.ports import CacheEntry
from synthgen.run_shard import run_shard
from synthgen.sharding import input_key, manifest_key, result_key
from synthgen.states import BatchState, ShardState
from synthgen.storage_mark import MARK
from synthgen.upkeep import move_on, run_upkeep, sweep
from tests.fakes.clock import FakeClock
from tests.fakes.object_store import FakeObjects
from tests.workshop import REFUSED, WRONG_KEY, Workshop, echo, failing, questions

Make = Callable[..., Workshop]
EVERY = 5.0


def upkeep(workshop: Workshop) -> bool:
    workshop.clock.advance(EVERY)
    return run_upkeep(workshop.services, every=EVERY)


def gone(workshop: Workshop) -> str:
    """An owner of this machine whose process does not exist."""
    place = current_owner().rsplit("/", 2)[0]
    return f"{place}/{2**31 - 1}/1.00"


# ---- turns


def test_one_process_per_period_does_the_round(workshop: Workshop) -> None:
    assert run_upkeep(workshop.services, every=EVERY)
    assert not run_upkeep(workshop.services, every=EVERY)
    workshop.clock.advance(EVERY)
    assert run_upkeep(workshop.services, every=EVERY)


# ---- rescue and resend


def test_a_shard_whose_worker_fell_silent_is_sent_again(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), pool="gpu")
    workshop.store.claim(batch.id, number=0, owner="elsewhere", lease=60)
    assert upkeep(workshop)
    assert workshop.shard_states(batch) == [ShardState.RUNNING]
    workshop.clock.advance(60)
    sent = len(workshop.dispatcher.sent)
    assert upkeep(workshop)
    assert workshop.shard_states(batch) == [ShardState.QUEUED]
    assert workshop.dispatcher.sent[sent:] == [("gpu", batch.id, 0)]


def test_a_shard_of_a_process_of_this_machine_that_is_gone_is_not_waited_for(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), shard_requests=1)
    workshop.store.claim(batch.id, number=0, owner=gone(workshop), lease=3600)
    workshop.store.claim(batch.id, number=1, owner=current_owner(), lease=3600)
    upkeep(workshop)
    assert workshop.shard_states(batch) == [ShardState.PENDING, ShardState.RUNNING]


def test_a_message_that_was_lost_is_sent_again_once_in_its_time(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), shard_requests=1, pool="gpu")
    upkeep(workshop)
    assert len(workshop.dispatcher.sent) == 2
    workshop.clock.advance(workshop.limits.resend_after)
    upkeep(workshop)
    assert workshop.dispatcher.sent[2:] == [("gpu", batch.id, 0), ("gpu", batch.id, 1)]
    upkeep(workshop)
    assert len(workshop.dispatcher.sent) == 4


def test_what_a_broker_that_was_away_did_not_take_is_sent_when_it_is_back(workshop: Workshop) -> None:
    workshop.dispatcher.away = True
    batch = workshop.submitted(questions(1), pool="gpu")
    workshop.clock.advance(workshop.limits.resend_after)
    assert upkeep(workshop)
    workshop.dispatcher.away = False
    workshop.clock.advance(workshop.limits.resend_after)
    upkeep(workshop)
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0)]


def test_a_pool_that_cannot_be_told_does_not_keep_the_others_from_their_messages(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [workshop.submitted(questions(1, start=10 * number), pool=f"pool-{number}") for number in range(3)]
    send, asked = workshop.dispatcher.send, []

    def deaf(pool: str, batch_id: str, numbers: Sequence[int]) -> None:
        asked.append(pool)
        if pool == min(batches, key=lambda batch: batch.id).options.pool:
            raise ServiceUnavailable("The broker does not answer.")
        send(pool, batch_id, numbers)

    monkeypatch.setattr(workshop.dispatcher, "send", deaf)
    sent = len(workshop.dispatcher.sent)
    workshop.clock.advance(workshop.limits.resend_after)
    assert upkeep(workshop)
    assert sorted(asked) == ["pool-0", "pool-1", "pool-2"]
    assert len(workshop.dispatcher.sent) == sent + 2


def test_a_paused_batch_is_left_alone(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1), pool="gpu")
    pause(workshop.services, batch.id)
    workshop.clock.advance(workshop.limits.resend_after)
    sent = list(workshop.dispatcher.sent)
    upkeep(workshop)
    assert workshop.dispatcher.sent == sent
    assert workshop.store.get(batch.id).state is BatchState.PAUSED


# ---- batches that wait for somebody


def crashed_at_the_end(workshop: Workshop, *, start: int = 1) -> Batch:
    """All shards are sealed; the sealer died before it ended the batch."""
    batch = workshop.submitted(questions(2, start=start))
    move = workshop.store.move

    def dies(*_: object, **__: object) -> Batch:
        raise ServiceUnavailable("The database does not answer.")

    workshop.store.move = dies  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        workshop.run(batch)
    workshop.store.move = move  # type: ignore[method-assign]
    return batch


def watched_ends(workshop: Workshop) -> list[str]:
    """Grows by the id of each batch that is completed."""
    ended, move = [], workshop.store.move

    def watched(batch_id: str, to: BatchState, **options: Any) -> Batch:
        if to is BatchState.COMPLETED:
            ended.append(batch_id)
        return move(batch_id, to, **options)

    workshop.store.move = watched  # type: ignore[method-assign]
    return ended


@pytest.mark.parametrize("reached", [BatchState.IN_PROGRESS, BatchState.FINALIZING])
def test_what_a_crashed_sealer_left_is_finished(workshop: Workshop, reached: BatchState) -> None:
    batch = crashed_at_the_end(workshop)
    if reached is BatchState.FINALIZING:
        workshop.store.move(batch.id, BatchState.FINALIZING)
    upkeep(workshop)
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED


def test_a_cancelled_batch_whose_worker_died_is_ended(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    workshop.store.claim(batch.id, number=0, owner="elsewhere", lease=60)
    cancel(workshop.services, batch.id)
    upkeep(workshop)
    assert workshop.store.get(batch.id).state is BatchState.CANCELLING
    workshop.clock.advance(60)
    upkeep(workshop)
    assert workshop.store.get(batch.id).state is BatchState.CANCELLED
    assert [line["error"]["code"] for line in workshop.results(batch)] == ["batch_cancelled"] * 2


@pytest.mark.parametrize("paused", [False, True])
def test_a_batch_past_its_window_expires_and_keeps_what_is_finished(workshop: Workshop, paused: bool) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2, completion_window=60)
    run_shard(workshop.services, workshop.worker, batch.id)
    if paused:
        pause(workshop.services, batch.id)
    workshop.clock.advance(54)
    upkeep(workshop)
    assert workshop.store.get(batch.id).state is (BatchState.PAUSED if paused else BatchState.IN_PROGRESS)
    upkeep(workshop)
    ended = workshop.store.get(batch.id)
    assert ended.state is BatchState.EXPIRED
    assert [line["error"] and line["error"]["code"] for line in workshop.results(batch)] == [
        None,
        None,
        "batch_expired",
        "batch_expired",
    ]


def test_a_batch_that_is_cancelled_behind_a_stale_page_stays_cancelled(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), completion_window=60)
    stale = pause(workshop.services, batch.id)
    workshop.clock.advance(61)
    cancel(workshop.services, batch.id)
    move_on(workshop.services, stale)
    assert workshop.store.get(batch.id).state is BatchState.CANCELLED


def test_a_batch_that_is_retried_behind_a_stale_page_runs_on(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), pool="gpu")
    stale = workshop.store.move(batch.id, BatchState.CANCELLING)
    cancel(workshop.services, batch.id)
    retry(workshop.services, batch.id)
    move_on(workshop.services, stale)
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert workshop.shard_states(batch) == [ShardState.QUEUED]


def test_a_batch_that_is_retried_while_it_is_wound_down_loses_no_shard(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = workshop.submitted(questions(2), pool="gpu")
    workshop.store.move(batch.id, BatchState.CANCELLING)
    cancel_unstarted = workshop.store.cancel_unstarted

    def overtaken(batch_id: str) -> int:
        monkeypatch.undo()
        cancel(workshop.services, batch.id)
        retry(workshop.services, batch.id)
        return cancel_unstarted(batch_id)

    monkeypatch.setattr(workshop.store, "cancel_unstarted", overtaken)
    move_on(workshop.services, workshop.store.get(batch.id))
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert ShardState.CANCELLED not in workshop.shard_states(batch)


def test_one_batchs_trouble_does_not_keep_the_others_waiting(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = workshop.objects.put

    def bug(key: str, data: bytes) -> None:
        if broken.id in key:
            raise RuntimeError("boom")
        put(key, data)

    broken = workshop.submitted(questions(1, start=50))
    workshop.clock.advance(1)
    healthy = crashed_at_the_end(workshop)
    workshop.engine.answer = failing({"line-1": WRONG_KEY})
    workshop.run(broken)
    workshop.store.move(broken.id, BatchState.CANCELLING)
    monkeypatch.setattr(workshop.objects, "put", bug)
    assert upkeep(workshop)
    assert workshop.store.get(healthy.id).state is BatchState.COMPLETED
    assert workshop.store.get(broken.id).state is BatchState.CANCELLING
    assert f"batch={broken.id}: Shard 0 of {broken.id} cannot end" in caplog.text


def test_a_host_whose_clock_is_ahead_ends_no_batch_early(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1), completion_window=60)
    ahead = FakeClock()
    ahead.advance(3600)
    assert run_upkeep(replace(workshop.services, clock=ahead), every=EVERY)
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


def test_every_batch_has_its_turn_however_many_are_newer_and_the_oldest_first(workshop: Workshop) -> None:
    batches = [crashed_at_the_end(workshop, start=10 * number) for number in range(3)]
    ended = watched_ends(workshop)
    upkeep(workshop)
    assert ended == [batch.id for batch in batches]


def test_a_database_that_is_away_ends_the_round(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.submitted(questions(1))

    def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("The database does not answer.")

    monkeypatch.setattr(workshop.store, "all_ended", away)
    with pytest.raises(DatabaseUnavailable):
        upkeep(workshop)


def test_an_object_that_cannot_be_reached_keeps_only_its_own_batch_waiting(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = crashed_at_the_end(workshop)
    younger = crashed_at_the_end(workshop, start=10)
    writer = workshop.objects.writer

    def broken(key: str) -> Any:
        if stuck.id in key:
            raise ServiceUnavailable(f"{key} cannot be written: input/output error.")
        return writer(key)

    monkeypatch.setattr(workshop.objects, "writer", broken)
    assert upkeep(workshop)
    assert workshop.store.get(younger.id).state is BatchState.COMPLETED
    assert workshop.store.get(stuck.id).state is BatchState.FINALIZING
    assert f"batch={stuck.id}" in caplog.text
    monkeypatch.undo()
    upkeep(workshop)
    assert workshop.store.get(stuck.id).state is BatchState.COMPLETED


# ---- the sweep


def objects_of(workshop: Workshop) -> set[str]:
    return set(workshop.objects.objects) - {MARK}


def test_objects_that_a_row_points_at_are_never_swept(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    ended = workshop.submitted(questions(3), shard_requests=2)
    workshop.run(ended)
    retried = workshop.submitted(questions(3, start=10))
    workshop.run(retried)
    workshop.store.reset_failed(retried.id, None)
    workshop.submitted(questions(3, start=20))
    before = objects_of(workshop)
    assert len(before) == 1 + 2 + 1 + 1 + 1 + 1 + 1
    sweep(workshop.services)
    assert objects_of(workshop) == before


def test_orphans_are_swept_when_they_are_old(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    workshop.run(batch)
    sweep(workshop.services)
    kept = objects_of(workshop)
    orphans = {
        input_key("batch_killed_at_submit"),
        manifest_key("batch_removed"),
        result_key(batch.id, 0, 4711),
        f"batches/{batch.id}/stray",
    }
    for key in orphans:
        workshop.objects.put(key, b"x")
        workshop.objects.modified[key] = workshop.clock.now()
    sweep(workshop.services)
    assert objects_of(workshop) == kept | orphans
    workshop.clock.advance(workshop.limits.orphan_age)
    sweep(workshop.services)
    assert objects_of(workshop) == kept


def test_a_sweep_that_is_told_to_stop_removes_no_more_than_it_has_found(workshop: Workshop) -> None:
    sweep(workshop.services)
    orphans = [input_key(f"batch_{number}") for number in range(4)]
    for key in orphans:
        workshop.objects.put(key, b"x")
        workshop.objects.modified[key] = workshop.clock.now()
    workshop.clock.advance(workshop.limits.orphan_age)
    answers = iter([False, False, True])
    sweep(workshop.services, stopped=lambda: next(answers))
    assert objects_of(workshop) == set(orphans[2:])


def test_where_nothing_is_an_orphan_nothing_is_looked_for(workshop_with: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = workshop_with(orphan_age=math.inf, cache_max_bytes=0)
    workshop.cache.put([CacheEntry(bytes(32), "n", "m", b"x", 1, 1, None)])
    monkeypatch.delattr(FakeObjects, "list")
    monkeypatch.delattr(FakeObjects, "sweep_uploads")
    sweep(workshop.services)
    assert workshop.cache.stats() == []
    assert workshop.objects.objects == {}


def test_objects_that_are_not_ours_are_left_alone(workshop: Workshop) -> None:
    for key in ("other/file.jsonl", "batches/stray"):
        workshop.objects.put(key, b"x")
    sweep(workshop.services)
    assert objects_of(workshop) == {"other/file.jsonl", "batches/stray"}


def test_the_results_of_the_round_before_a_retry_are_swept_when_the_new_ones_are_sealed(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(3))
    workshop.run(batch)
    (before,) = [status.result.key for status in workshop.store.shards(batch.id) if status.result is not None]
    workshop.engine.answer = echo
    workshop.store.reset_failed(batch.id, None)
    workshop.run(batch)
    sweep(workshop.services)
    assert before not in workshop.objects.objects
    assert len(workshop.results(batch)) == 3


def test_the_sweep_keeps_the_cache_within_its_size(workshop_with: Make) -> None:
    workshop = workshop_with(cache_max_bytes=100)
    for number in range(3):
        workshop.cache.put([CacheEntry(bytes([number]) * 32, "n", "m", b"x" * 40, 1, 1, None)])
        workshop.clock.advance(1)
    sweep(workshop.services)
    assert sum(stats.entries for stats in workshop.cache.stats()) == 2


def test_the_sweep_has_turns_of_its_own(workshop: Workshop) -> None:
    assert run_upkeep(workshop.services, every=EVERY)
    orphan = input_key("batch_killed")
    workshop.objects.put(orphan, b"x")
    upkeep(workshop)
    assert orphan in workshop.objects.objects
    workshop.clock.advance(3600)
    upkeep(workshop)
    assert orphan not in workshop.objects.objects
