"""The tables of moves, and every pair of states against a store that keeps to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from synthgen.errors import LostLease, StateConflict
from synthgen.ports import BatchStore
from synthgen.states import BATCH_MOVES, ENDED, RETRIED, SHARD_MOVES, UNFINISHED, BatchState, ShardState, leaving
from tests.examples import claimed, result_of, rows_of, sealed, stored_batch
from tests.fakes.batch_store import FakeBatchStore
from tests.fakes.clock import FakeClock


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(BATCH_MOVES) == set(BatchState)
    assert set(SHARD_MOVES) == set(ShardState)


def test_no_state_leads_to_itself() -> None:
    assert not [state for state, targets in BATCH_MOVES.items() if state in targets]
    assert not [state for state, targets in SHARD_MOVES.items() if state in targets]


@pytest.mark.parametrize(("start", "to"), list(itertools.product(BatchState, BatchState)))
def test_a_batch_state_may_be_entered_from_just_the_states_that_lead_to_it(start: BatchState, to: BatchState) -> None:
    assert (start in leaving(BATCH_MOVES, to)) is (to in BATCH_MOVES[start])


@pytest.mark.parametrize(("start", "to"), list(itertools.product(ShardState, ShardState)))
def test_a_shard_state_may_be_entered_from_just_the_states_that_lead_to_it(start: ShardState, to: ShardState) -> None:
    assert (start in leaving(SHARD_MOVES, to)) is (to in SHARD_MOVES[start])


def test_a_batch_is_unfinished_or_has_ended() -> None:
    assert set(BatchState) == ENDED | UNFINISHED
    assert not ENDED & UNFINISHED


def test_no_plain_move_leaves_an_ended_batch_and_a_retry_leaves_all_but_a_refused_one() -> None:
    assert not [state for state in ENDED if BATCH_MOVES[state]]
    assert {BatchState.FAILED} == ENDED - RETRIED
    assert RETRIED < ENDED


@pytest.mark.parametrize("start", sorted(UNFINISHED))
def test_every_unfinished_batch_can_come_to_an_end(start: BatchState) -> None:
    reached, edge = {start}, {start}
    while edge:
        edge = {to for state in edge for to in BATCH_MOVES[state]} - reached
        reached |= edge
    assert reached & ENDED


def test_a_batch_completes_only_by_way_of_finalizing() -> None:
    assert leaving(BATCH_MOVES, BatchState.COMPLETED) == {BatchState.FINALIZING}


def test_a_shard_is_done_only_by_being_run() -> None:
    assert leaving(SHARD_MOVES, ShardState.DONE) == {ShardState.RUNNING}


# ---- a store keeps to the tables


@pytest.fixture
def store() -> FakeBatchStore:
    return FakeBatchStore(FakeClock())


WAY_TO: dict[BatchState, list[BatchState]] = {
    BatchState.VALIDATING: [],
    BatchState.FAILED: [BatchState.FAILED],
    BatchState.IN_PROGRESS: [BatchState.IN_PROGRESS],
    BatchState.PAUSED: [BatchState.IN_PROGRESS, BatchState.PAUSED],
    BatchState.FINALIZING: [BatchState.IN_PROGRESS, BatchState.FINALIZING],
    BatchState.COMPLETED: [BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.COMPLETED],
    BatchState.CANCELLING: [BatchState.IN_PROGRESS, BatchState.CANCELLING],
    BatchState.CANCELLED: [BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.CANCELLED],
    BatchState.EXPIRED: [BatchState.IN_PROGRESS, BatchState.EXPIRED],
}


@pytest.mark.parametrize(("start", "to"), list(itertools.product(BatchState, BatchState)))
def test_a_store_makes_the_moves_of_the_table_and_refuses_all_others(
    store: BatchStore, start: BatchState, to: BatchState
) -> None:
    batch_id = stored_batch(store, state=BatchState.VALIDATING).id
    for state in WAY_TO[start]:
        store.move(batch_id, state)
    if to in BATCH_MOVES[start]:
        assert store.move(batch_id, to, reason="because").state is to
        assert store.get(batch_id).reason == "because"
    else:
        with pytest.raises(StateConflict):
            store.move(batch_id, to)
        assert store.get(batch_id).state is start


def _in_state(store: BatchStore, state: ShardState) -> str:
    """A batch whose only shard is in that state."""
    batch_id = stored_batch(store, shards=1).id
    if state is ShardState.QUEUED:
        store.queue_window(batch_id, spare=1)
    elif state is ShardState.RUNNING:
        claimed(store, batch_id)
    elif state is ShardState.DONE:
        sealed(store, batch_id, failed={2: "server_error"})
    elif state is ShardState.CANCELLED:
        store.move(batch_id, BatchState.CANCELLING)
        store.cancel_unstarted(batch_id)
    return batch_id


def _cancel(store: BatchStore, batch_id: str) -> None:
    if store.get(batch_id).state is not BatchState.CANCELLING:
        store.move(batch_id, BatchState.CANCELLING)
    store.cancel_unstarted(batch_id)


def _end(store: BatchStore, batch_id: str) -> None:
    if store.get(batch_id).state is not BatchState.CANCELLING:
        store.move(batch_id, BatchState.CANCELLING)
    store.move(batch_id, BatchState.CANCELLED)


def _retry(store: BatchStore, batch_id: str) -> None:
    _end(store, batch_id)
    store.reset_failed(batch_id, None)


OPERATIONS: dict[str, tuple[Callable[[BatchStore, str], object], ShardState, set[ShardState]]] = {
    "queue": (
        lambda store, batch_id: store.queue_window(batch_id, spare=9),
        ShardState.QUEUED,
        {ShardState.PENDING},
    ),
    "claim": (
        lambda store, batch_id: store.claim(batch_id, number=0, owner="w", lease=60),
        ShardState.RUNNING,
        {ShardState.PENDING, ShardState.QUEUED},
    ),
    "rescue": (
        lambda store, _: store.rescue(owners=["worker-1"]),
        ShardState.PENDING,
        {ShardState.RUNNING},
    ),
    "cancel": (
        _cancel,
        ShardState.CANCELLED,
        {ShardState.PENDING, ShardState.QUEUED},
    ),
    "retry": (_retry, ShardState.PENDING, {ShardState.DONE, ShardState.CANCELLED}),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("start", ShardState)
def test_each_operation_moves_shards_from_just_the_states_it_may_leave(
    store: BatchStore, operation: str, start: ShardState
) -> None:
    act, target, leaves = OPERATIONS[operation]
    assert leaves <= leaving(SHARD_MOVES, target)
    batch_id = _in_state(store, start)
    act(store, batch_id)
    assert next(store.shards(batch_id)).state is (target if start in leaves else start)


@pytest.mark.parametrize("start", [ShardState.PENDING, ShardState.QUEUED, ShardState.DONE])
def test_a_shard_that_is_not_running_can_not_be_sealed(store: BatchStore, start: ShardState) -> None:
    stale = claimed(store, stored_batch(store, shards=1).id)
    store.release(stale)
    if start is ShardState.QUEUED:
        store.queue_window(stale.batch.id, spare=1)
    elif start is ShardState.DONE:
        sealed(store, stale.batch.id)
    rows = rows_of(stale.shard)
    before = next(store.shards(stale.batch.id))
    with pytest.raises(LostLease):
        store.seal(stale, result_of(stale, rows), rows)
    assert next(store.shards(stale.batch.id)) == before


def test_a_running_shard_is_sealed_and_released_by_its_own_attempt(store: BatchStore) -> None:
    first = claimed(store, stored_batch(store, shards=1).id)
    store.release(first)
    assert next(store.shards(first.batch.id)).state is ShardState.PENDING
    sealed(store, first.batch.id)
    assert next(store.shards(first.batch.id)).state is ShardState.DONE
    store.release(first)
    assert next(store.shards(first.batch.id)).state is ShardState.DONE
