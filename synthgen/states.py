"""The states of batches and shards and the only list of moves between them.

Every state change is one guarded statement that names the states it may leave (``leaving``); the database repeats the
names as CHECKs, and a test walks all pairs::

    batch   validating ──→ in_progress ──→ finalizing ──→ completed
                │            │  ↑   ↑ │                        │
                │            ↓  │   │ └→ cancelling → cancelled│
                ↓          paused ──┼──→ cancelling            │
              failed         │      │                          │
                             └──────┼──→ expired               │
                                    └───────── retry ──────────┘   (also from cancelled and expired; no plain move)

    shard   pending → queued → running → done
            queued | running → pending      rescued, released
            pending → running               claimed without a message (embedded run)
            pending | queued | running → cancelled
            done | cancelled → pending      retry: its failed rows run again, the finished ones stay
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class BatchState(StrEnum):
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ShardState(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


_B = BatchState
_S = ShardState

BATCH_MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    _B.VALIDATING: frozenset({_B.IN_PROGRESS, _B.FAILED}),
    _B.IN_PROGRESS: frozenset({_B.PAUSED, _B.FINALIZING, _B.CANCELLING, _B.EXPIRED}),
    _B.PAUSED: frozenset({_B.IN_PROGRESS, _B.CANCELLING, _B.EXPIRED}),
    _B.FINALIZING: frozenset({_B.COMPLETED}),
    _B.CANCELLING: frozenset({_B.CANCELLED}),
    _B.COMPLETED: frozenset(),
    _B.CANCELLED: frozenset(),
    _B.EXPIRED: frozenset(),
    _B.FAILED: frozenset(),
}

RETRIED: frozenset[BatchState] = frozenset({_B.COMPLETED, _B.CANCELLED, _B.EXPIRED})
"""The ended states that a retry leaves for ``in_progress``. It reopens shards in the same transaction; a plain move
must not come here, for it would bring back a batch that somebody has ended since its caller looked."""

SHARD_MOVES: Mapping[ShardState, frozenset[ShardState]] = {
    _S.PENDING: frozenset({_S.QUEUED, _S.RUNNING, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.PENDING, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.DONE, _S.PENDING, _S.CANCELLED}),
    _S.DONE: frozenset({_S.PENDING}),
    _S.CANCELLED: frozenset({_S.PENDING}),
}

ENDED: frozenset[BatchState] = frozenset({_B.COMPLETED, _B.FAILED, _B.CANCELLED, _B.EXPIRED})
"""Batches that nothing moves any more, save a user's ``retry``."""

UNFINISHED: frozenset[BatchState] = frozenset(BatchState) - ENDED

_State = TypeVar("_State", BatchState, ShardState)


def leaving(moves: Mapping[_State, frozenset[_State]], to: _State) -> frozenset[_State]:
    """The states from which ``to`` may be entered: the guard of the statement that enters it."""
    return frozenset(state for state, targets in moves.items() if to in targets)
