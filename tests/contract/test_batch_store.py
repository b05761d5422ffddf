"""What every batch store keeps about batches: stored once, found, moved, listed, removed. Shards: the file beside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest

from synthgen.batch import BatchOptions, CacheMode, Counts, OnInvalid, Shard
from synthgen.errors import NotFound, StateConflict
from synthgen.ports import BatchStore, ErrorGroup
from synthgen.request import Rejected
from synthgen.response import CANCELLED, EXPIRED, NEVER_RAN
from synthgen.states import BATCH_MOVES, ENDED, UNFINISHED, BatchState, ShardState
from synthgen.workers import AUTO
from tests.contract.conftest import Later
from tests.examples import claimed, rows_of, sealed, some_batch, some_shards, stored_batch


def route(to: BatchState) -> list[BatchState]:
    """The moves that bring a validating batch to ``to``: the shortest way through the table."""
    ways: list[list[BatchState]] = [[BatchState.VALIDATING]]
    for way in ways:  # grows while it is read: breadth first
        if way[-1] is to:
            return way[1:]
        ways.extend([*way, target] for target in sorted(BATCH_MOVES[way[-1]]) if target not in way)
    raise AssertionError(f"no way to {to}")


def in_state(store: BatchStore, state: BatchState, **changes: Any) -> str:
    batch = stored_batch(store, state=BatchState.VALIDATING, **changes)
    for step in route(state):
        store.move(batch.id, step)
    return batch.id


def test_a_batch_comes_back_as_it_was_stored(batch_store: BatchStore) -> None:
    options = BatchOptions(
        endpoint="/v1/chat/completions",
        model="some-model",
        defaults={"temperature": 0.7, "stop": ["\0", "ü"], "n": 1, "nested": {"b": 1, "a": None}},
        prompt="Solve: {question}",
        on_invalid=OnInvalid.SKIP,
        cache=CacheMode.REFRESH,
        cache_ttl=60,
        pool="gpu",
    )
    parts = some_shards(3)
    lines = [Rejected(4, "invalid_json_line", "ü"), Rejected(9, "duplicate_custom_id", "again")]
    batch = some_batch(parts, rejected=2, options=options, reason="why")
    stored = batch_store.create(batch, parts, lines)
    assert replace(stored, created_at=batch.created_at) == batch
    assert stored.created_at.tzinfo is UTC
    assert batch_store.get(batch.id) == stored
    assert list(batch_store.rejected(batch.id)) == lines
    assert [status.shard for status in batch_store.shards(batch.id)] == parts
    assert {status.state for status in batch_store.shards(batch.id)} == {ShardState.PENDING}


def test_text_that_postgres_cannot_hold_is_stored_with_a_replacement(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, rejected=[Rejected(99, "invalid_request", 'field "a\\0b" \ud83d')])
    assert [line.line for line in batch_store.rejected(batch.id)] == [99]
    batch_store.move(batch.id, BatchState.PAUSED, reason="nul \0 from a provider")
    assert (batch_store.get(batch.id).reason or "").startswith("nul ")


def test_marks_reach_the_attempt_and_only_it(batch_store: BatchStore) -> None:
    part = replace(some_shards(1)[0], marks=((1, -1), (3, 2)))
    batch = batch_store.create(some_batch([part]), [part], [])
    assert [status.shard.marks for status in batch_store.shards(batch.id)] == [()]
    assert claimed(batch_store, batch.id).shard == part


def test_thousands_of_shards_and_rejected_lines_stream_in_order(batch_store: BatchStore) -> None:
    parts = some_shards(2_100, requests=1)
    lines = [Rejected(line, "invalid_request", "no") for line in range(3_000, 5_100)]
    batch = batch_store.create(some_batch(parts, rejected=len(lines)), parts, lines[::-1])
    assert [status.shard for status in batch_store.shards(batch.id)] == parts
    assert list(batch_store.rejected(batch.id)) == lines
    assert [status.shard for status in batch_store.shards(batch.id, first=1_500)] == parts[1_500:]
    assert list(batch_store.rejected(batch.id, first=lines[3].line)) == lines[3:]
    assert list(batch_store.rejected(batch.id, first=lines[3].line, last=lines[5].line)) == lines[3:6]
    assert list(batch_store.rejected(batch.id, first=lines[-1].line + 1)) == []


def test_the_completion_window_runs_by_the_clock_of_the_store(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, window=3600)
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == timedelta(seconds=3600)
    assert stored_batch(batch_store).expires_at is None


@pytest.mark.parametrize("wrong", ["shards", "total", "rejected"])
def test_a_batch_whose_numbers_do_not_add_up_is_not_stored(batch_store: BatchStore, wrong: str) -> None:
    parts = some_shards(2)
    batch = some_batch(parts, rejected=1)
    given: list[Shard] = {"shards": parts[:1], "total": [*parts[:1], replace(parts[1], requests=1)]}.get(wrong, parts)
    lines = [] if wrong == "rejected" else [Rejected(7, "invalid_request", "no")]
    with pytest.raises(ValueError, match=batch.id):
        batch_store.create(batch, given, lines)
    with pytest.raises(NotFound):
        batch_store.get(batch.id)


def test_an_equal_submission_attaches_to_the_unfinished_batch(batch_store: BatchStore) -> None:
    first = stored_batch(batch_store, fingerprint="same")
    assert stored_batch(batch_store, fingerprint="same") == first
    assert batch_store.find_unfinished("same") == first
    assert batch_store.find_unfinished("other") is None
    assert len(batch_store.list_batches()) == 1


def test_storing_the_same_batch_again_changes_nothing(batch_store: BatchStore) -> None:
    parts = some_shards(2)
    batch = some_batch(parts)
    assert batch_store.create(batch, parts, []) == batch_store.create(batch, parts, [])
    assert len(list(batch_store.shards(batch.id))) == 2


@pytest.mark.parametrize("state", sorted(BatchState))
def test_only_unfinished_batches_are_attached_to(batch_store: BatchStore, state: BatchState) -> None:
    first = in_state(batch_store, state, fingerprint="same", input_bytes=12_345)
    assert (batch_store.find_unfinished("same") is not None) == (state in UNFINISHED)
    assert batch_store.has_unfinished(12_345) == (state in UNFINISHED)
    assert not batch_store.has_unfinished(12_346)
    assert (stored_batch(batch_store, fingerprint="same").id == first) == (state in UNFINISHED)


def test_two_equal_submissions_at_the_same_moment_give_one_batch(batch_store: BatchStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(lambda _: stored_batch(batch_store, shards=50, fingerprint="same"), range(8)))
    assert len({batch.id for batch in stored}) == 1
    assert len(batch_store.list_batches()) == 1


def test_a_batch_is_found_by_id_beginning_name_and_last(batch_store: BatchStore, later: Later) -> None:
    one = stored_batch(batch_store, id="batch_aa1", name="one.jsonl")
    later(1)
    two = stored_batch(batch_store, id="batch_ab2", name="two.jsonl")
    for reference, batch in (("batch_aa1", one), ("batch_aa", one), ("one.jsonl", one), ("last", two)):
        assert batch_store.resolve(reference).id == batch.id


@pytest.mark.parametrize("reference", ["batch_a", "nothing", "", "twice.jsonl", "batch%", "batch__a1", "nul\0"])
def test_a_reference_that_means_none_or_several_is_not_found(batch_store: BatchStore, reference: str) -> None:
    for batch_id in ("batch_aa1", "batch_ab2"):
        stored_batch(batch_store, id=batch_id, name="twice.jsonl")
    with pytest.raises(NotFound):
        batch_store.resolve(reference)


def test_an_id_wins_over_a_longer_id_that_begins_with_it(batch_store: BatchStore) -> None:
    for batch_id in ("batch_aa", "batch_aab"):
        stored_batch(batch_store, id=batch_id)
    assert batch_store.resolve("batch_aa").id == "batch_aa"


def test_the_last_of_no_batches_is_not_found(batch_store: BatchStore) -> None:
    with pytest.raises(NotFound):
        batch_store.resolve("last")


def test_batches_are_listed_newest_first_by_state_and_up_to_a_limit(batch_store: BatchStore, later: Later) -> None:
    ids: list[str] = []
    for state in (BatchState.IN_PROGRESS, BatchState.PAUSED, BatchState.IN_PROGRESS, BatchState.COMPLETED):
        ids.insert(0, in_state(batch_store, state))
        later(1)
    assert [progress.batch.id for progress in batch_store.list_batches()] == ids
    assert [progress.batch.id for progress in batch_store.list_batches(limit=2)] == ids[:2]
    running = batch_store.list_batches(states=[BatchState.IN_PROGRESS, BatchState.EXPIRED])
    assert [progress.batch.id for progress in running] == [ids[1], ids[3]]
    assert batch_store.list_batches(states=[]) == []


def test_all_batches_of_some_states_come_oldest_first_however_many(
    batch_store: BatchStore, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.batch_store._PAGE", 2)
    ids = []
    for _ in range(3):
        ids += [in_state(batch_store, BatchState.IN_PROGRESS), in_state(batch_store, BatchState.PAUSED)]
        in_state(batch_store, BatchState.COMPLETED)
        later(1)
    wanted = (BatchState.IN_PROGRESS, BatchState.PAUSED)
    assert [batch.id for batch in batch_store.batches(wanted)] == ids
    assert next(batch_store.batches([BatchState.PAUSED])) == batch_store.get(ids[1])
    assert list(batch_store.batches([])) == []


def test_a_batch_is_overdue_from_the_end_of_its_window_on(batch_store: BatchStore, later: Later) -> None:
    endless, short = stored_batch(batch_store), stored_batch(batch_store, window=100)
    assert not batch_store.is_overdue(short.id)
    later(101)
    assert batch_store.is_overdue(short.id)
    assert not batch_store.is_overdue(endless.id)


@pytest.mark.parametrize("unknown", ["get", "progress", "error_groups", "delete", "is_overdue"])
def test_what_is_asked_of_an_unknown_batch_is_not_found(batch_store: BatchStore, unknown: str) -> None:
    with pytest.raises(NotFound):
        getattr(batch_store, unknown)("batch_nobody")
    with pytest.raises(NotFound):
        batch_store.move("batch_nobody", BatchState.PAUSED)
    with pytest.raises(NotFound):
        batch_store.reset_failed("batch_nobody", None)
    with pytest.raises(NotFound):
        batch_store.find_request("batch_nobody", line=1)


@pytest.mark.parametrize("to", sorted(BatchState))
@pytest.mark.parametrize("state", sorted(BatchState))
def test_a_batch_moves_as_the_table_says_and_in_no_other_way(
    batch_store: BatchStore, state: BatchState, to: BatchState
) -> None:
    batch_id = in_state(batch_store, state)
    if to in BATCH_MOVES[state]:
        moved = batch_store.move(batch_id, to, reason="because")
        assert (moved.state, moved.reason) == (to, "because")
        assert (moved.ended_at is not None) == (to in ENDED)
        assert batch_store.get(batch_id) == moved
    else:
        with pytest.raises(StateConflict) as conflict:
            batch_store.move(batch_id, to)
        assert (conflict.value.present, conflict.value.wanted) == (state, to)
        assert batch_store.get(batch_id).state is state


def test_a_move_since_a_reading_is_refused_when_the_state_was_changed_after_it(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    paused = batch_store.move(batch.id, BatchState.PAUSED, since=batch)
    batch_store.move(batch.id, BatchState.IN_PROGRESS, since=paused)
    for stale in (batch, paused):
        with pytest.raises(StateConflict):
            batch_store.move(batch.id, BatchState.PAUSED, since=stale)
    assert batch_store.get(batch.id).state is BatchState.IN_PROGRESS


def test_a_claim_is_no_change_of_the_batchs_state(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    assert batch_store.move(batch.id, BatchState.PAUSED, since=attempt.batch).state is BatchState.PAUSED


def test_going_on_takes_the_reason_of_the_pause_away(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    batch_store.move(batch.id, BatchState.PAUSED, reason="Wrong key.")
    assert batch_store.move(batch.id, BatchState.IN_PROGRESS).reason is None


def test_finalizing_is_remembered_when_completed(batch_store: BatchStore, later: Later) -> None:
    batch_id = in_state(batch_store, BatchState.FINALIZING)
    later(5)
    done = batch_store.move(batch_id, BatchState.COMPLETED)
    assert done.finalizing_at is not None
    assert done.ended_at is not None
    assert done.finalizing_at < done.ended_at


def test_a_batch_cannot_come_back_beside_an_equal_one(batch_store: BatchStore) -> None:
    ended = in_state(batch_store, BatchState.CANCELLING, fingerprint="same")
    batch_store.cancel_unstarted(ended)
    batch_store.move(ended, BatchState.CANCELLED)
    stored_batch(batch_store, fingerprint="same")
    with pytest.raises(StateConflict):
        batch_store.reset_failed(ended, None)
    assert batch_store.get(ended).state is BatchState.CANCELLED


def test_only_an_ended_batch_can_be_deleted_and_leaves_nothing(batch_store: BatchStore) -> None:
    kept = stored_batch(batch_store, rejected=[Rejected(7, "invalid_request", "no")])
    sealed(batch_store, kept.id, failed={1: "boom"})
    batch = stored_batch(batch_store, rejected=[Rejected(7, "invalid_request", "no")])
    sealed(batch_store, batch.id, failed={1: "boom"})
    with pytest.raises(StateConflict):
        batch_store.delete(batch.id)
    for state in (BatchState.CANCELLING, BatchState.CANCELLED):
        batch_store.move(batch.id, state)
    batch_store.delete(batch.id)
    with pytest.raises(NotFound):
        batch_store.get(batch.id)
    assert list(batch_store.shards(batch.id)) == []
    assert list(batch_store.rejected(batch.id)) == []
    assert list(batch_store.failures(batch.id)) == []
    assert len(list(batch_store.shards(kept.id))) == 2
    assert len(list(batch_store.rejected(kept.id))) == len(list(batch_store.failures(kept.id))) == 1


def test_a_finished_request_is_found_by_line_and_by_custom_id(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    attempt = sealed(batch_store, batch.id, failed={2: "boom"})
    found = batch_store.find_request(batch.id, line=2)
    assert found.row == rows_of(attempt.shard, failed={2: "boom"})[1]
    assert (found.batch_id, found.shard) == (batch.id, 0)
    assert found.result_key == next(batch_store.shards(batch.id)).result.key
    assert batch_store.find_request(batch.id, custom_id="question-2") == found
    for missing in ({"line": 4}, {"custom_id": "question-4"}, {"line": 2, "custom_id": "question-1"}):
        with pytest.raises(NotFound):
            batch_store.find_request(batch.id, **missing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "custom_id", ["x" * 20_000, "nul \0", "漢字 👍", "%s {} \\N\t"], ids=["long", "nul", "wide", "odd"]
)
def test_any_custom_id_can_be_sealed_and_found(batch_store: BatchStore, custom_id: str) -> None:
    batch = stored_batch(batch_store, shards=1, requests=1)
    sealed(batch_store, batch.id, custom_id=custom_id)
    assert batch_store.find_request(batch.id, custom_id=custom_id).row.line == 1


def test_failures_come_in_line_order_by_code_and_up_to_a_limit(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=3, requests=1_000)
    for first in (1, 1_001, 2_001):
        failed = {line: "odd" if line % 2 else "even" for line in range(first, first + 900)}
        sealed(batch_store, batch.id, failed=failed)
    lines = [stored.row.line for stored in batch_store.failures(batch.id)]
    assert lines == [line for line in range(1, 3_001) if (line - 1) % 1_000 < 900]
    assert [s.row.line for s in batch_store.failures(batch.id, code="even")] == [n for n in lines if not n % 2]
    assert [s.row.line for s in batch_store.failures(batch.id, limit=1_500)] == lines[:1_500]
    assert list(batch_store.failures(batch.id, code="none")) == []
    assert list(batch_store.failures(batch.id, limit=0)) == []


def test_errors_are_grouped_by_cause_commonest_first_with_the_first_of_each(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=2, requests=4)
    assert batch_store.error_groups(batch.id) == []
    sealed(batch_store, batch.id, failed={1: "rare", 3: "common"})
    sealed(batch_store, batch.id, failed={5: "common", 6: "common"})
    assert batch_store.error_groups(batch.id) == [
        ErrorGroup("common", 3, "common at line 3", 3, "question-3"),
        ErrorGroup("rare", 1, "rare at line 1", 1, "question-1"),
    ]


@pytest.mark.parametrize(("ending", "code"), [(BatchState.CANCELLING, CANCELLED), (BatchState.EXPIRED, EXPIRED)])
def test_requests_of_cancelled_shards_are_errors_by_the_ending_of_the_batch(
    batch_store: BatchStore, later: Later, ending: BatchState, code: str
) -> None:
    batch = stored_batch(batch_store, shards=3, window=60)
    sealed(batch_store, batch.id, failed={1: code, 2: "boom"})
    if ending is BatchState.CANCELLING:
        batch_store.move(batch.id, ending)
    else:
        later(61)
    assert batch_store.cancel_unstarted(batch.id) == 2
    if ending is BatchState.EXPIRED:
        batch_store.move(batch.id, ending)
    assert batch_store.error_groups(batch.id) == [
        ErrorGroup(code, 7, f"{code} at line 1", 1, "question-1"),
        ErrorGroup("boom", 1, "boom at line 2", 2, "question-2"),
    ]
    assert batch_store.progress(batch.id).counts.failed == 8


def test_a_cancelled_shard_alone_is_named_by_its_first_line(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=2)
    sealed(batch_store, batch.id)
    batch_store.move(batch.id, BatchState.CANCELLING)
    batch_store.cancel_unstarted(batch.id)
    assert batch_store.error_groups(batch.id) == [ErrorGroup(CANCELLED, 3, NEVER_RAN[CANCELLED], 4, "")]
    assert batch_store.progress(batch.id).counts == Counts(3, 3, prompt_tokens=30, completion_tokens=15, cost=0.75)


# ---- the pool of a batch that goes where its model is served


def test_a_batch_without_a_pool_of_its_own_is_sent_to_one_and_stays_there(batch_store: BatchStore) -> None:
    options = BatchOptions(pool=AUTO, routed_by="m", defaults={"stop": ["\0"]})
    batch = stored_batch(batch_store, options=options)
    assert batch_store.get(batch.id).options == options
    assert batch_store.assign_pool(batch.id, "a") == "a"
    assert batch_store.get(batch.id) == replace(batch, options=replace(options, pool="a"))
    assert batch_store.assign_pool(batch.id, "b") == "a"
    assert claimed(batch_store, batch.id).batch.options.pool == "a"
    assert batch_store.list_batches()[0].batch.options.pool == "a"


@pytest.mark.parametrize("pool", ["gpu", None])
def test_a_batch_that_was_not_left_to_us_keeps_its_pool(batch_store: BatchStore, pool: str | None) -> None:
    batch = stored_batch(batch_store, options=BatchOptions(pool=pool))
    assert batch_store.assign_pool(batch.id, "other") == pool
    assert batch_store.get(batch.id) == batch


def test_an_ended_batch_is_not_sent_anywhere(batch_store: BatchStore) -> None:
    batch_id = in_state(batch_store, BatchState.CANCELLED, options=BatchOptions(pool=AUTO))
    assert batch_store.assign_pool(batch_id, "a") == AUTO


def test_a_batch_that_does_not_exist_has_no_pool(batch_store: BatchStore) -> None:
    with pytest.raises(NotFound):
        batch_store.assign_pool("batch_none", "a")
