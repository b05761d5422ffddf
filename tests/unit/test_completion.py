"""The end of a batch: proved before it is declared, and written down in a manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import orjson
import pytest

from synthgen.batch import Batch, CacheMode, Counts, OnInvalid
from synthgen.completion import fill_window, finish_batch
from synthgen.control import cancel, pause, retry
from synthgen.errors import ServiceUnavailable, SynthgenError
from synthgen.run_shard import run_shard
from synthgen.sharding import manifest_key
from synthgen.states import ENDED, BatchState, ShardState
from synthgen.upkeep import move_on
from tests.workshop import REFUSED, Killed, Workshop, echo, failing, questions

Make = Callable[..., Workshop]


def sealed_but_not_finished(workshop: Workshop, count: int = 3, **options: object) -> Batch:
    """All shards are done, and whoever sealed the last one died before it ended the batch."""
    batch = workshop.submitted(questions(count), **options)
    move = workshop.store.move

    def dies(*_: object, **__: object) -> Batch:
        raise ServiceUnavailable("The database does not answer.")

    workshop.store.move = dies  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        workshop.run(batch)
    workshop.store.move = move  # type: ignore[method-assign]
    return workshop.store.get(batch.id)


def test_a_batch_with_open_shards_is_not_finished(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    assert finish_batch(workshop.services, batch.id) is None
    run_shard(workshop.services, workshop.worker, batch.id)
    assert finish_batch(workshop.services, batch.id) is None
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


def test_what_a_crashed_sealer_left_is_finished_by_anyone(workshop: Workshop) -> None:
    batch = sealed_but_not_finished(workshop)
    ended = finish_batch(workshop.services, batch.id)
    assert ended is not None
    assert ended.state is BatchState.COMPLETED
    assert ended.ended_at is not None


def test_a_batch_that_stopped_half_way_into_its_end_is_finished(workshop: Workshop) -> None:
    batch = sealed_but_not_finished(workshop)
    workshop.store.move(batch.id, BatchState.FINALIZING)
    ended = finish_batch(workshop.services, batch.id)
    assert ended is not None
    assert ended.state is BatchState.COMPLETED


def test_finishing_an_ended_or_a_paused_batch_does_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    workshop.run(batch)
    assert finish_batch(workshop.services, batch.id) is None
    paused = sealed_but_not_finished(workshop, 2)
    pause(workshop.services, paused.id)
    assert finish_batch(workshop.services, paused.id) is None
    assert workshop.store.get(paused.id).state is BatchState.PAUSED


def test_of_two_who_finish_at_once_one_does_and_the_other_is_told_nothing(workshop: Workshop) -> None:
    batch = sealed_but_not_finished(workshop)
    writer, rivals = workshop.objects.writer, []

    def overtaken(key: str) -> object:
        workshop.objects.writer = writer  # type: ignore[method-assign]
        rivals.append(finish_batch(workshop.services, batch.id))
        return writer(key)

    workshop.objects.writer = overtaken  # type: ignore[method-assign, assignment]
    assert finish_batch(workshop.services, batch.id) is None
    assert [rival.state for rival in rivals if rival is not None] == [BatchState.COMPLETED]


@pytest.mark.parametrize("stalled_at", [BatchState.FINALIZING, BatchState.COMPLETED])
def test_who_stalls_before_it_ends_a_batch_does_not_end_the_retry_that_has_begun_meanwhile(
    workshop_with: Make, stalled_at: BatchState
) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = sealed_but_not_finished(workshop)
    overtake(workshop, stalled_at, lambda: retry(workshop.services, batch.id))
    assert finish_batch(workshop.services, batch.id) is None
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert not workshop.store.all_ended(batch.id)


@pytest.mark.parametrize("stalled_at", [BatchState.CANCELLING, BatchState.CANCELLED])
def test_who_stalls_before_it_cancels_what_a_retry_left_out_does_not_cancel_the_next_retry(
    workshop_with: Make, stalled_at: BatchState
) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(4), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    cancel(workshop.services, batch.id)
    retry(workshop.services, batch.id, codes=[REFUSED.code])
    overtake(workshop, stalled_at, lambda: retry(workshop.services, batch.id))
    workshop.run(batch)
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED
    assert workshop.progress(batch)["succeeded"] == 3


def overtake(workshop: Workshop, to: BatchState, then: Callable[[], object]) -> None:
    """Whoever is about to make this move stalls; meanwhile somebody else ends the batch, and ``then`` happens."""
    move = workshop.store.move

    def stalls(batch_id: str, target: BatchState, **options: Any) -> Batch:
        if target is to:
            workshop.store.move = move  # type: ignore[method-assign]
            assert finish_batch(workshop.services, batch_id)
            then()
        return move(batch_id, target, **options)

    workshop.store.move = stalls  # type: ignore[method-assign]


def test_a_crash_at_the_very_end_leaves_none_of_a_batchs_own_answers_behind(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), cache=CacheMode.OFF)
    purge = workshop.cache.purge

    def killed(**_: object) -> int:
        raise Killed

    workshop.cache.purge = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        workshop.run(batch)
    workshop.cache.purge = purge  # type: ignore[method-assign]
    assert workshop.cache.stats()
    move_on(workshop.services, workshop.store.get(batch.id))
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED
    assert workshop.cache.stats() == []


@pytest.mark.parametrize("state", [ShardState.PENDING, ShardState.QUEUED, ShardState.RUNNING])
def test_a_shard_that_is_open_again_ends_nothing_though_it_has_a_result(workshop: Workshop, state: ShardState) -> None:
    batch = sealed_but_not_finished(workshop)
    all_ended = workshop.store.all_ended

    def retried_meanwhile(batch_id: str) -> bool:
        answer = all_ended(batch_id)
        workshop.store._batches[batch_id].shards[0].state = state
        return answer

    workshop.store.all_ended = retried_meanwhile  # type: ignore[method-assign]
    assert finish_batch(workshop.services, batch.id) is None
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


@pytest.mark.parametrize("missing", [1, -1])
def test_a_shard_that_does_not_add_up_keeps_its_batch_from_completing(workshop: Workshop, missing: int) -> None:
    batch = sealed_but_not_finished(workshop)
    (shard,) = workshop.store._batches[batch.id].shards
    assert shard.result is not None
    shard.result = replace(shard.result, counts=replace(shard.result.counts, succeeded=3 - missing))
    with pytest.raises(SynthgenError, match="shard 0 does not account for its 3 requests"):
        finish_batch(workshop.services, batch.id)
    assert workshop.store.get(batch.id).state not in ENDED
    assert manifest_key(batch.id) not in workshop.objects.objects


def test_a_missing_shard_keeps_its_batch_from_completing(workshop: Workshop) -> None:
    batch = sealed_but_not_finished(workshop, 4, shard_requests=2)
    workshop.store._batches[batch.id].shards.pop()
    with pytest.raises(SynthgenError, match="2 responses for 4 requests"):
        finish_batch(workshop.services, batch.id)
    assert workshop.store.get(batch.id).state not in ENDED


def test_a_batch_whose_requests_all_failed_is_completed_all_the_same(workshop_with: Make) -> None:
    workshop = workshop_with(lambda request, number: REFUSED)
    batch = workshop.submitted(questions(3))
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.progress(batch)["failed"] == 3


def test_a_window_that_ended_after_the_last_answer_expires_nothing(workshop: Workshop) -> None:
    batch = sealed_but_not_finished(workshop, completion_window=60)
    workshop.clock.advance(3600)
    ended = finish_batch(workshop.services, batch.id)
    assert ended is not None
    assert ended.state is BatchState.COMPLETED


# ---- the manifest


def manifest_of(workshop: Workshop, batch: Batch) -> dict[str, object]:
    value = orjson.loads(workshop.objects.get(manifest_key(batch.id)))
    assert isinstance(value, dict)
    return value


def test_the_manifest_has_the_counts_and_every_shard_with_its_digest(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    rows = [*questions(3), b"garbage", *questions(2, start=4)]
    batch = workshop.submitted(rows, shard_requests=3, on_invalid=OnInvalid.SKIP)
    workshop.run(batch)
    manifest = manifest_of(workshop, batch)
    shards = manifest.pop("shards")
    assert manifest == {
        "batch": batch.id,
        "name": "questions",
        "status": "completed",
        "input": {"key": batch.input_key, "bytes": batch.input_bytes, "lines": 6},
        "requests": 5,
        "rejected": 1,
        "succeeded": 4,
        "failed": 1,
        "cached": 0,
        "prompt_tokens": 8,
        "completion_tokens": 12,
        "cached_prompt_tokens": 0,
        "cached_completion_tokens": 0,
        "cost": 2.0,
        "saved": 0.0,
        "unpriced": 0,
        "unpriced_cached": 0,
        "never_ran": 0,
    }
    assert isinstance(shards, list)
    assert [(s["number"], s["first_line"], s["lines"], s["requests"], s["state"]) for s in shards] == [
        (0, 1, 3, 3, "done"),
        (1, 4, 3, 2, "done"),
    ]
    for shard in shards:
        data = workshop.objects.get(shard["key"])
        assert (shard["bytes"], shard["blake2b"]) == (len(data), blake2b(data, digest_size=32).hexdigest())


def test_the_manifest_of_a_cancelled_batch_says_what_never_ran(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    cancel(workshop.services, batch.id)
    manifest = manifest_of(workshop, batch)
    assert (manifest["status"], manifest["succeeded"], manifest["failed"], manifest["never_ran"]) == (
        "cancelled",
        2,
        2,
        2,
    )
    assert isinstance(manifest["shards"], list)
    assert [("key" in shard, shard["state"]) for shard in manifest["shards"]] == [(True, "done"), (False, "cancelled")]


def test_a_shard_cancelled_during_a_retry_counts_as_the_round_before_left_it(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(3))
    workshop.run(batch)
    workshop.store.reset_failed(batch.id, None)
    cancel(workshop.services, batch.id)
    manifest = manifest_of(workshop, batch)
    assert (manifest["status"], manifest["succeeded"], manifest["failed"], manifest["never_ran"]) == (
        "cancelled",
        2,
        1,
        0,
    )


def test_the_reason_of_a_cancel_stays_with_the_batch(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    assert cancel(workshop.services, batch.id).reason == "Cancelled by the user."


# ---- the window


def test_the_window_grows_with_what_runs_and_is_sent_once(workshop_with: Make) -> None:
    workshop = workshop_with(window=2)
    batch = workshop.submitted(questions(6), shard_requests=1, pool="gpu")
    fill_window(workshop.services, batch)
    assert [number for _, _, number in workshop.dispatcher.sent] == [0, 1]
    workshop.store.claim(batch.id, number=0, owner="x", lease=60)
    fill_window(workshop.services, batch)
    assert [number for _, _, number in workshop.dispatcher.sent] == [0, 1, 2, 3]
    assert {pool for pool, _, _ in workshop.dispatcher.sent} == {"gpu"}


def test_a_batch_is_submitted_whatever_the_dispatcher_raises(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(workshop.dispatcher, "send", breaks)
    batch = workshop.submitted(questions(2), pool="gpu")
    assert workshop.shard_states(batch) == [ShardState.QUEUED]
    assert f"messages not sent, upkeep will send them: batch={batch.id}" in caplog.text


def test_a_paused_batch_sends_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2), shard_requests=1)
    pooled = replace(batch, options=replace(batch.options, pool="gpu"))
    pause(workshop.services, batch.id)
    fill_window(workshop.services, pooled)
    assert workshop.dispatcher.sent == []


def test_counts_of_the_whole_are_the_sum_of_the_shards(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(7), shard_requests=2)
    workshop.engine.answer = echo
    workshop.run(batch)
    total = sum((s.result.counts for s in workshop.store.shards(batch.id) if s.result is not None), Counts())
    assert total == workshop.store.progress(batch.id).counts
