"""A shard that can be neither run nor closed: it ends all the same, and every one of its requests is counted."""

from __future__ import annotations

import pytest

from synthgen.batch import Counts
from synthgen.errors import LostLease
from synthgen.ports import BatchStore, Beat
from synthgen.states import BatchState, ShardState
from tests.contract.test_batch_store_retries import ended_batch
from tests.contract.test_batch_store_shards import seal, states_of, whole
from tests.examples import claimed, stored_batch


def test_a_shard_that_is_given_up_never_ran(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=2)
    attempt, other = claimed(batch_store, batch.id), claimed(batch_store, batch.id)
    batch_store.heartbeat([Beat(attempt.token, Counts(succeeded=2))], lease=60)
    batch_store.move(batch.id, BatchState.CANCELLING)
    batch_store.give_up(attempt)
    batch_store.give_up(attempt)
    assert states_of(batch_store, batch.id) == [ShardState.CANCELLED, ShardState.RUNNING]
    assert whole(batch_store.progress(batch.id)).counts == Counts(failed=3)
    with pytest.raises(LostLease):
        seal(batch_store, attempt)
    seal(batch_store, other)
    batch_store.give_up(other)
    assert states_of(batch_store, batch.id) == [ShardState.CANCELLED, ShardState.DONE]
    assert batch_store.all_ended(batch.id)


def test_a_shard_that_is_given_up_in_a_retry_keeps_the_outcome_of_the_round_before(batch_store: BatchStore) -> None:
    batch_id = ended_batch(batch_store)
    before = batch_store.progress(batch_id).counts
    batch_store.reset_failed(batch_id, ["a"])
    attempt = claimed(batch_store, batch_id)
    batch_store.move(batch_id, BatchState.CANCELLING)
    batch_store.give_up(attempt)
    assert next(batch_store.shards(batch_id)).state is ShardState.CANCELLED
    assert whole(batch_store.progress(batch_id)).counts == before


def test_giving_up_a_shard_that_somebody_else_holds_changes_nothing(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=1)
    lost = claimed(batch_store, batch.id, owner="dead")
    batch_store.rescue(owners=["dead"])
    held = claimed(batch_store, batch.id)
    batch_store.give_up(lost)
    assert states_of(batch_store, batch.id) == [ShardState.RUNNING]
    seal(batch_store, held)
