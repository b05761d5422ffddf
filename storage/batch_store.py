"""The BatchStore on PostgreSQL: which statements make up one transaction of each method of the port.

The statements are in ``batch_statements``, ``shard_statements`` and ``request_statements``, by what they are about.
``Database.run`` may commit a change twice when only the first commit's reply was lost; so each change either can be
recognised when it comes again (its id, its token, a nonce) or its loss costs time only.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

from storage import batch_statements, request_statements, shard_returns, shard_statements
from storage.database import Database
from storage.identity import identity
from synthgen.batch import Attempt, Batch, Directive, EngineIdentity, Progress, Shard
from synthgen.errors import NotFound
from synthgen.ports import Beat, ErrorGroup, RequestRow, SealedResult, ShardStatus, StoredRequest
from synthgen.request import Rejected
from synthgen.states import BatchState

_PAGE = 1_000


class PostgresBatchStore:
    """See ``ports.BatchStore``; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def identity(self) -> str:
        return self._database.run(identity)

    def create(self, batch: Batch, shards: Iterable[Shard], rejected: Iterable[Rejected]) -> Batch:
        return self._database.run(batch_statements.create, batch, shards, rejected)

    def find_unfinished(self, fingerprint: str) -> Batch | None:
        return self._database.run(batch_statements.find_unfinished, fingerprint)

    def has_unfinished(self, input_bytes: int) -> bool:
        return self._database.run(batch_statements.has_unfinished, input_bytes)

    def get(self, batch_id: str) -> Batch:
        return self._database.run(batch_statements.get, batch_id)

    def resolve(self, reference: str) -> Batch:
        return self._database.run(batch_statements.resolve, reference)

    def list_batches(self, *, states: Iterable[BatchState] = tuple(BatchState), limit: int = 50) -> list[Progress]:
        wanted = frozenset(states)
        return self._database.run(batch_statements.newest, wanted, limit)

    def batches(self, states: Iterable[BatchState]) -> Iterator[Batch]:
        wanted, after = frozenset(states), None
        while True:
            page = self._database.run(batch_statements.oldest, wanted, after, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1]

    def is_overdue(self, batch_id: str) -> bool:
        return self._database.run(batch_statements.is_overdue, batch_id)

    def progress(self, batch_id: str) -> Progress:
        return self._database.run(batch_statements.progress, batch_id)

    def move(self, batch_id: str, to: BatchState, *, reason: str | None = None, since: Batch | None = None) -> Batch:
        change = uuid.uuid4()
        return self._database.run(batch_statements.move, batch_id, to, change, reason=reason, since=since)

    def assign_pool(self, batch_id: str, pool: str) -> str | None:
        return self._database.run(batch_statements.assign_pool, batch_id, pool)

    def reset_failed(self, batch_id: str, codes: Sequence[str] | None) -> int:
        change = uuid.uuid4()
        return self._database.run(batch_statements.reset_failed, batch_id, codes, change)

    def delete(self, batch_id: str) -> None:
        tries = 0

        def work(connection: batch_statements.Connection) -> None:
            nonlocal tries
            tries += 1
            try:
                batch_statements.delete(connection, batch_id)
            except NotFound:
                if tries == 1:  # later, it is our own deletion whose reply was lost
                    raise

        self._database.run(work)

    def rejected(self, batch_id: str, *, first: int = 1, last: int | None = None) -> Iterator[Rejected]:
        after = first - 1
        while True:
            page = self._database.run(request_statements.rejected_page, batch_id, after, last, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1].line

    def shards(self, batch_id: str, *, first: int = 0) -> Iterator[ShardStatus]:
        after = first - 1
        while True:
            page = self._database.run(shard_statements.status_page, batch_id, after, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1].shard.number

    def find_request(self, batch_id: str, *, line: int | None = None, custom_id: str | None = None) -> StoredRequest:
        return self._database.run(request_statements.find, batch_id, line=line, custom_id=custom_id)

    def failures(self, batch_id: str, *, code: str | None = None, limit: int | None = None) -> Iterator[StoredRequest]:
        after, left = 0, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            page = self._database.run(request_statements.failure_page, batch_id, code, after, size)
            if not page:
                return
            yield from page
            after = page[-1].row.line
            left = None if left is None else left - len(page)

    def error_groups(self, batch_id: str) -> list[ErrorGroup]:
        return self._database.run(request_statements.error_groups, batch_id)

    def all_ended(self, batch_id: str) -> bool:
        return self._database.run(shard_statements.all_ended, batch_id)

    def cancel_unstarted(self, batch_id: str) -> int:
        return self._database.run(shard_statements.cancel_unstarted, batch_id)

    def give_up(self, attempt: Attempt) -> None:
        self._database.run(shard_statements.give_up, attempt.token)

    def queue_window(self, batch_id: str, *, spare: int) -> list[int]:
        return self._database.run(shard_statements.queue_window, batch_id, spare)

    def claim(
        self, batch_id: str, *, number: int | None, owner: str, lease: float, engine: EngineIdentity | None = None
    ) -> Attempt | None:
        return self._database.run(
            shard_statements.claim, batch_id, number=number, owner=owner, lease=lease, engine=engine
        )

    def heartbeat(self, beats: Sequence[Beat], *, lease: float) -> Mapping[int, Directive]:
        if not beats:
            return {}
        return self._database.run(shard_statements.heartbeat, beats, lease)

    def seal(self, attempt: Attempt, result: SealedResult, rows: Iterable[RequestRow]) -> None:
        kept = list(rows)
        expected = attempt.shard.requests
        if not len(kept) == result.counts.finished == expected:
            raise ValueError(
                f"{attempt.batch.id}: shard {attempt.shard.number} has {expected} requests, "
                f"not {len(kept)} rows and {result.counts.finished} counted"
            )
        self._database.run(shard_statements.seal, attempt, result, kept)

    def release(self, attempt: Attempt) -> None:
        self._database.run(shard_returns.release, attempt.token)

    def rescue(self, *, owners: Sequence[str] = ()) -> list[str]:
        return self._database.run(shard_returns.rescue, owners, settled=lambda: self._database.settled)

    def owners(self) -> list[str]:
        return self._database.run(shard_statements.owners)

    def engines(self, batch_id: str) -> list[EngineIdentity]:
        return self._database.run(shard_statements.engines, batch_id)

    def resend(self, *, older_than: float, pool: str | None = None) -> list[tuple[str, int]]:
        return self._database.run(shard_statements.resend, older_than, pool)

    def take_turn(self, name: str, *, every: float) -> bool:
        return self._database.run(shard_statements.take_turn, name, every)
