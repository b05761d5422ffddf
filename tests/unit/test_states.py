"""The tables of moves, and every pair of states against a store that keeps to them."""

from __future__ import annotations

import itertools

import pytest

from synthgen.states import BATCH_MOVES, ENDED, SHARD_MOVES, UNFINISHED, BatchState, ShardState, leaving


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
    assert ENDED | UNFINISHED == set(BatchState)
    assert not ENDED & UNFINISHED


def test_from_an_ended_batch_only_a_retry_leads_on() -> None:
    assert {to for state in ENDED for to in BATCH_MOVES[state]} == {BatchState.IN_PROGRESS}
    assert not BATCH_MOVES[BatchState.FAILED]


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
