"""What every batch store keeps of a retry: which requests run again, and which outcome stays meanwhile."""

from __future__ import annotations

import pytest

from synthgen.batch import Counts, Directive
from synthgen.errors import StateConflict
from synthgen.ports import BatchStore, Beat
from synthgen.response import CANCELLED, EXPIRED
from synthgen.states import BatchState, ShardState
from tests.contract.conftest import Later
from tests.contract.test_batch_store_shards import end, states_of, whole
from tests.examples import claimed, counts_of, result_of, rows_of, sealed, some_shards, stored_batch


def ended_batch(store: BatchStore) -> str:
    """Three shards of three: failures a, b in the first, b in the second, none in the third."""
    batch = stored_batch(store, shards=3)
    for failed in ({1: "a", 2: "b"}, {5: "b"}, {}):
        sealed(store, batch.id, failed=failed)
    end(store, batch.id, BatchState.FINALIZING, BatchState.COMPLETED)
    return batch.id


@pytest.mark.parametrize(
    ("codes", "to_run", "states"), [(None, 3, "ppd"), (["b"], 2, "ppd"), (["a"], 1, "pdd"), (["a", "b"], 3, "ppd")]
)
def test_a_retry_runs_the_failed_requests_of_these_codes(
    batch_store: BatchStore, codes: list[str] | None, to_run: int, states: str
) -> None:
    batch_id = ended_batch(batch_store)
    keys = [status.result and status.result.key for status in batch_store.shards(batch_id)]
    assert batch_store.reset_failed(batch_id, codes) == to_run
    batch = batch_store.get(batch_id)
    assert (batch.state, batch.ended_at, batch.finalizing_at) == (BatchState.IN_PROGRESS, None, None)
    assert batch.retry_codes == (None if codes is None else tuple(codes))
    statuses = list(batch_store.shards(batch_id))
    assert [str(status.state)[0] for status in statuses] == list(states)
    assert [status.result and status.result.key for status in statuses] == keys
    progress = whole(batch_store.progress(batch_id))
    assert (progress.pending, progress.counts.succeeded, progress.counts.failed) == (to_run, 6, 3 - to_run)
    assert progress.counts.prompt_tokens == 10 * (9 - to_run)
    attempt = claimed(batch_store, batch_id)
    assert (attempt.number, attempt.previous_key) == (1, keys[0])


@pytest.mark.parametrize("codes", [["c"], []])
def test_a_retry_of_nothing_changes_nothing(batch_store: BatchStore, codes: list[str]) -> None:
    batch_id = ended_batch(batch_store)
    before = batch_store.progress(batch_id), list(batch_store.shards(batch_id))
    assert batch_store.reset_failed(batch_id, codes) == 0
    assert (batch_store.progress(batch_id), list(batch_store.shards(batch_id))) == before


@pytest.mark.parametrize("state", [None, BatchState.PAUSED, BatchState.CANCELLING, BatchState.FINALIZING])
def test_only_an_ended_batch_can_be_retried(batch_store: BatchStore, state: BatchState | None) -> None:
    batch = stored_batch(batch_store)
    sealed(batch_store, batch.id, failed={1: "a"})
    if state is not None:
        batch_store.move(batch.id, state)
    with pytest.raises(StateConflict):
        batch_store.reset_failed(batch.id, None)


def test_a_batch_whose_input_was_refused_cannot_be_retried(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, state=BatchState.VALIDATING)
    batch_store.move(batch.id, BatchState.FAILED)
    with pytest.raises(StateConflict):
        batch_store.reset_failed(batch.id, None)


def test_failures_that_a_retry_asks_again_are_no_failures_meanwhile(batch_store: BatchStore) -> None:
    batch_id = ended_batch(batch_store)
    batch_store.reset_failed(batch_id, ["b"])
    assert [stored.row.error_code for stored in batch_store.failures(batch_id)] == ["a"]
    assert [(group.code, group.count) for group in batch_store.error_groups(batch_id)] == [("a", 1)]
    assert batch_store.find_request(batch_id, line=3).row.succeeded


def test_the_rows_of_a_retried_shard_replace_the_old_ones(batch_store: BatchStore) -> None:
    batch_id = ended_batch(batch_store)
    batch_store.reset_failed(batch_id, None)
    sealed(batch_store, batch_id, failed={2: "c"})
    assert not batch_store.all_ended(batch_id)
    sealed(batch_store, batch_id)
    assert batch_store.all_ended(batch_id)
    assert [(stored.row.line, stored.row.error_code) for stored in batch_store.failures(batch_id)] == [(2, "c")]
    assert [batch_store.find_request(batch_id, line=line).row.line for line in range(1, 10)] == list(range(1, 10))
    assert whole(batch_store.progress(batch_id)).counts == counts_of(
        [row for number in range(3) for row in rows_of(some_shards(3)[number], failed={2: "c"})]
    )


def test_a_retried_shard_that_comes_back_unfinished_keeps_what_stays(batch_store: BatchStore, later: Later) -> None:
    batch_id = ended_batch(batch_store)
    batch_store.reset_failed(batch_id, ["a"])
    before = whole(batch_store.progress(batch_id))
    for silent in (False, True):
        attempt = claimed(batch_store, batch_id)
        assert whole(batch_store.progress(batch_id)).counts == before.counts
        batch_store.heartbeat([Beat(attempt.token, Counts(succeeded=2, failed=1))], lease=60)
        whole(batch_store.progress(batch_id))
        if silent:
            later(61)
            batch_store.rescue()
        else:
            batch_store.release(attempt)
        assert whole(batch_store.progress(batch_id)).counts == before.counts


def test_a_retry_that_is_cancelled_leaves_the_earlier_outcome(batch_store: BatchStore) -> None:
    batch_id = ended_batch(batch_store)
    before, groups = batch_store.progress(batch_id), batch_store.error_groups(batch_id)
    batch_store.reset_failed(batch_id, None)
    batch_store.move(batch_id, BatchState.CANCELLING)
    assert batch_store.cancel_unstarted(batch_id) == 2
    batch_store.move(batch_id, BatchState.CANCELLED)
    assert whole(batch_store.progress(batch_id)).counts == before.counts
    assert batch_store.error_groups(batch_id) == groups
    assert batch_store.reset_failed(batch_id, None) == 3


def cancelled_batch(store: BatchStore) -> str:
    """Three shards of three: a failure a in the first, none in the second, the third cancelled untouched."""
    batch = stored_batch(store, shards=3, window=3600)
    sealed(store, batch.id, failed={1: "a"})
    store.release(claimed(store, batch.id))
    store.move(batch.id, BatchState.CANCELLING)
    store.cancel_unstarted(batch.id)
    sealed(store, batch.id)
    store.move(batch.id, BatchState.CANCELLED)
    return batch.id


@pytest.mark.parametrize("codes", [None, ["a", CANCELLED], ["a", EXPIRED]])
def test_a_retry_runs_cancelled_shards_whole_and_drops_the_window(
    batch_store: BatchStore, codes: list[str] | None
) -> None:
    batch_id = cancelled_batch(batch_store)
    assert batch_store.reset_failed(batch_id, codes) == 1 + 3
    assert batch_store.get(batch_id).expires_at is None
    assert states_of(batch_store, batch_id) == [ShardState.PENDING, ShardState.DONE, ShardState.PENDING]
    assert [status.attempts for status in batch_store.shards(batch_id)] == [0, 2, 0]


def test_a_retry_of_other_codes_leaves_cancelled_shards_as_they_are(batch_store: BatchStore) -> None:
    batch_id = cancelled_batch(batch_store)
    assert batch_store.reset_failed(batch_id, ["a"]) == 1
    assert states_of(batch_store, batch_id) == [ShardState.PENDING, ShardState.DONE, ShardState.CANCELLED]
    progress = whole(batch_store.progress(batch_id))
    assert (progress.counts.failed, progress.pending) == (3, 1)
    assert [(group.code, group.count) for group in batch_store.error_groups(batch_id)] == [(CANCELLED, 3)]
    sealed(batch_store, batch_id)
    assert batch_store.all_ended(batch_id)


def test_cancelled_shards_alone_are_nothing_to_run_for_other_codes(batch_store: BatchStore) -> None:
    batch_id = cancelled_batch(batch_store)
    assert batch_store.reset_failed(batch_id, ["b"]) == 0
    assert batch_store.get(batch_id).state is BatchState.CANCELLED


def test_a_retry_that_leaves_what_expired_has_a_window_of_the_same_length(
    batch_store: BatchStore, later: Later
) -> None:
    batch = stored_batch(batch_store, shards=2, window=3600)
    sealed(batch_store, batch.id, failed={1: "a"})
    later(3601)
    batch_store.cancel_unstarted(batch.id)
    batch_store.move(batch.id, BatchState.EXPIRED)
    assert batch_store.reset_failed(batch.id, ["a"]) == 1
    assert [(group.code, group.count) for group in batch_store.error_groups(batch.id)] == [(EXPIRED, 3)]
    later(1800)
    assert claimed(batch_store, batch.id).directive is Directive.GO
    later(1801)
    batch_store.rescue()
    again = claimed(batch_store, batch.id)
    assert again.directive is Directive.EXPIRE
    rows = rows_of(again.shard, failed={1: "a"})
    batch_store.seal(again, result_of(again, rows), rows)
    batch_store.move(batch.id, BatchState.EXPIRED)
    assert batch_store.reset_failed(batch.id, ["a"]) == 1
    later(3601)
    assert batch_store.is_overdue(batch.id)


def test_what_stays_in_a_retried_shard_keeps_count_of_unknown_costs(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=2)
    sealed(batch_store, batch.id, failed={1: "a"}, cost=None)
    sealed(batch_store, batch.id, cost=None, cached=True)
    for state in (BatchState.FINALIZING, BatchState.COMPLETED):
        batch_store.move(batch.id, state)
    before = batch_store.progress(batch.id).counts
    assert (before.unpriced, before.unpriced_cached) == (2, 3)
    batch_store.reset_failed(batch.id, None)
    after = whole(batch_store.progress(batch.id)).counts
    assert (after.succeeded, after.unpriced, after.unpriced_cached) == (5, 2, 3)


def test_a_retry_counts_nothing_as_kept_that_its_batch_has_sealed(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=1)
    attempt = claimed(batch_store, batch.id)
    batch_store.heartbeat([Beat(attempt.token, Counts(succeeded=2))], lease=60)
    batch_store.release(attempt)
    sealed(batch_store, batch.id, failed={1: "a"})
    for state in (BatchState.FINALIZING, BatchState.COMPLETED):
        batch_store.move(batch.id, state)
    assert batch_store.reset_failed(batch.id, None) == 1
    assert batch_store.progress(batch.id).kept == 0
