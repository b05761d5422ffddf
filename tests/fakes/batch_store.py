"""The batch store as plain objects under one lock: what the statements of ``storage`` say, said in Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce, wraps
from itertools import count
from operator import add
from typing import Any, TypeVar
from uuid import uuid4

from synthgen.batch import Attempt, Batch, Counts, Directive, EngineIdentity, Progress, Shard
from synthgen.errors import LostLease, NotFound, StateConflict
from synthgen.ports import Beat, Clock, ErrorGroup, RequestRow, SealedResult, ShardStatus, StoredRequest
from synthgen.request import Rejected
from synthgen.response import CANCELLED, EXPIRED, NEVER_RAN
from synthgen.states import BATCH_MOVES, ENDED, RETRIED, UNFINISHED, BatchState, ShardState
from synthgen.workers import AUTO

_S = ShardState
_OPEN = (_S.PENDING, _S.QUEUED, _S.RUNNING)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _transaction(method: _Method) -> _Method:
    @wraps(method)
    def locked(self: FakeBatchStore, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]


@dataclass(slots=True)
class _Shard:
    shard: Shard
    state: ShardState = _S.PENDING
    attempts: int = 0
    lost: int = 0
    token: int | None = None
    owner: str | None = None
    engine: EngineIdentity | None = None
    lease_until: datetime | None = None
    queued_at: datetime | None = None
    counts: Counts = field(default_factory=Counts)
    kept: int = 0
    result: SealedResult | None = None
    rows: list[RequestRow] = field(default_factory=list)

    def cancel(self) -> None:
        self.state, self.owner, self.lease_until = _S.CANCELLED, None, None
        self.counts = self.result.counts if self.result else Counts(failed=self.shard.requests)


@dataclass(slots=True)
class _Batch:
    batch: Batch
    shards: list[_Shard]
    rejected: list[Rejected]

    def again(self, row: RequestRow, codes: Sequence[str] | None) -> bool:
        return not row.succeeded and (codes is None or row.error_code in codes)

    def back_to_pending(self, shard: _Shard, codes: Sequence[str] | None) -> None:
        stays = [row for row in shard.rows if not self.again(row, codes)]
        left = max(shard.kept, shard.counts.succeeded - sum(row.succeeded for row in stays))
        shard.kept = left if shard.state is _S.RUNNING else 0
        shard.state, shard.token, shard.owner, shard.lease_until, shard.queued_at = _S.PENDING, None, None, None, None
        shard.counts = reduce(add, map(_counts_of, stays), Counts())


def _counts_of(row: RequestRow) -> Counts:
    cost, unknown = row.cost or 0.0, int(row.succeeded and row.cost is None)
    tokens = (row.prompt_tokens, row.completion_tokens)
    if row.cached:
        return Counts(1, 0, 1, 0, 0, *tokens, saved=cost, unpriced_cached=unknown)
    won = int(row.succeeded)
    return Counts(won, 1 - won, 0, *tokens, cost=cost, unpriced=unknown)


class FakeBatchStore:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._identity = uuid4().hex
        self._batches: dict[str, _Batch] = {}
        self._tokens = count(1)
        self._turns: dict[str, datetime] = {}

    def identity(self) -> str:
        return self._identity

    @_transaction
    def create(self, batch: Batch, shards: Iterable[Shard], rejected: Iterable[Rejected]) -> Batch:
        lines, parts = sorted(rejected, key=lambda line: line.line), list(shards)
        if len(parts) != batch.shards or sum(part.requests for part in parts) != batch.total:
            raise ValueError(f"{batch.id}: its shards do not hold its requests")
        if len(lines) != batch.rejected:
            raise ValueError(f"{batch.id}: not all rejected lines are given")
        older = self.find_unfinished(batch.fingerprint)
        if older is not None:
            return older
        now = self._clock.now()
        window = None if batch.expires_at is None else batch.expires_at - batch.created_at
        stored = replace(batch, created_at=now, expires_at=None if window is None else now + window)
        self._batches[batch.id] = _Batch(stored, [_Shard(part) for part in parts], lines)
        return stored

    @_transaction
    def find_unfinished(self, fingerprint: str) -> Batch | None:
        return next((b for b in self._all() if b.fingerprint == fingerprint and b.state in UNFINISHED), None)

    @_transaction
    def has_unfinished(self, input_bytes: int) -> bool:
        return any(b.input_bytes == input_bytes and b.state in UNFINISHED for b in self._all())

    @_transaction
    def get(self, batch_id: str) -> Batch:
        return self._record(batch_id).batch

    @_transaction
    def resolve(self, reference: str) -> Batch:
        newest_first = self._newest_first()
        if reference == "last":
            found = newest_first[:1]
        else:
            found = [b for b in newest_first if b.id == reference]
            found = found or [b for b in newest_first if b.id.startswith(reference)]
            found = found or [b for b in newest_first if b.name == reference]
        if len(found) != 1:
            raise NotFound(f"{reference!r} means {len(found)} batches.")
        return found[0]

    @_transaction
    def list_batches(self, *, states: Iterable[BatchState] = tuple(BatchState), limit: int = 50) -> list[Progress]:
        wanted = frozenset(states)
        return [self.progress(b.id) for b in self._newest_first() if b.state in wanted][:limit]

    def batches(self, states: Iterable[BatchState]) -> Iterator[Batch]:
        wanted = frozenset(states)
        yield from [b for b in reversed(self._newest_first()) if b.state in wanted]

    @_transaction
    def is_overdue(self, batch_id: str) -> bool:
        expires_at = self._record(batch_id).batch.expires_at
        return expires_at is not None and expires_at <= self._clock.now()

    @_transaction
    def progress(self, batch_id: str) -> Progress:
        record = self._record(batch_id)
        running = [s for s in record.shards if s.state is _S.RUNNING]
        return Progress(
            batch=record.batch,
            counts=reduce(add, (s.counts for s in record.shards), Counts()),
            running=sum(s.shard.requests - s.counts.finished for s in running),
            shards={state: sum(s.state is state for s in record.shards) for state in ShardState},
            kept=sum(s.kept for s in record.shards if s.state in (_S.PENDING, _S.QUEUED)),
        )

    def rejected(self, batch_id: str, *, first: int = 1, last: int | None = None) -> Iterator[Rejected]:
        for line in self._batches[batch_id].rejected if batch_id in self._batches else ():
            if first <= line.line and (last is None or line.line <= last):
                yield line

    def shards(self, batch_id: str, *, first: int = 0) -> Iterator[ShardStatus]:
        for s in self._batches[batch_id].shards[first:] if batch_id in self._batches else ():
            yield ShardStatus(replace(s.shard, marks=()), s.state, s.attempts, s.result)

    @_transaction
    def find_request(self, batch_id: str, *, line: int | None = None, custom_id: str | None = None) -> StoredRequest:
        self._record(batch_id)
        for stored in self._rows(batch_id):
            if line in (None, stored.row.line) and custom_id in (None, stored.row.custom_id):
                return stored
        raise NotFound(f"{batch_id} has no such finished request.")

    def failures(self, batch_id: str, *, code: str | None = None, limit: int | None = None) -> Iterator[StoredRequest]:
        with self._lock:
            failed = [s for s in self._failed(batch_id) if code in (None, s.row.error_code)]
        yield from failed[:limit]

    @_transaction
    def error_groups(self, batch_id: str) -> list[ErrorGroup]:
        record = self._record(batch_id)
        found = [
            ErrorGroup(s.row.error_code or "", 1, s.row.error_message or "", s.row.line, s.row.custom_id)
            for s in self._failed(batch_id)
        ]
        code = EXPIRED if record.batch.out_of_time else CANCELLED
        found += [
            ErrorGroup(code, s.shard.requests, NEVER_RAN[code], s.shard.first_line, "")
            for s in record.shards
            if s.state is _S.CANCELLED and s.result is None
        ]
        groups: dict[str, ErrorGroup] = {}
        for group in sorted(found, key=lambda g: g.line):
            first = groups.get(group.code)
            groups[group.code] = group if first is None else replace(first, count=first.count + group.count)
        return sorted(groups.values(), key=lambda g: (-g.count, g.code))

    @_transaction
    def move(self, batch_id: str, to: BatchState, *, reason: str | None = None, since: Batch | None = None) -> Batch:
        record = self._record(batch_id)
        batch, now = record.batch, self._clock.now()
        if to not in BATCH_MOVES[batch.state] or (since and since.last_change != batch.last_change):
            raise StateConflict(batch_id, batch.state, to)
        finalizing_at = batch.finalizing_at
        if to in (BatchState.FINALIZING, BatchState.IN_PROGRESS):
            finalizing_at = now if to is BatchState.FINALIZING else None
        ended_at = now if to in ENDED else None
        times = {"finalizing_at": finalizing_at, "ended_at": ended_at}
        record.batch = replace(batch, state=to, reason=reason, last_change=uuid4(), **times)
        for shard in record.shards if to is BatchState.PAUSED else ():
            if shard.state is _S.QUEUED:
                shard.state, shard.queued_at = _S.PENDING, None
        for shard in record.shards if to is BatchState.IN_PROGRESS else ():
            shard.lost = 0 if shard.state in (_S.PENDING, _S.QUEUED) else shard.lost
        return record.batch

    @_transaction
    def assign_pool(self, batch_id: str, pool: str) -> str | None:
        record = self._record(batch_id)
        if record.batch.options.pool == AUTO and record.batch.state in UNFINISHED:
            record.batch = replace(record.batch, options=replace(record.batch.options, pool=pool))
        return record.batch.options.pool

    @_transaction
    def all_ended(self, batch_id: str) -> bool:
        record = self._batches.get(batch_id)
        return record is None or all(s.state not in _OPEN for s in record.shards)

    @_transaction
    def cancel_unstarted(self, batch_id: str) -> int:
        ending = self._directive(self.get(batch_id)) in (Directive.CANCEL, Directive.EXPIRE)
        if not ending or self.get(batch_id).state not in (BatchState.CANCELLING, BatchState.IN_PROGRESS):
            return 0
        chosen = [s for s in self._batches[batch_id].shards if s.state in (_S.PENDING, _S.QUEUED) and not s.attempts]
        for s in chosen:
            s.cancel()
        return len(chosen)

    @_transaction
    def give_up(self, attempt: Attempt) -> None:
        _, s = self._held(attempt.token)
        if s is not None:
            s.cancel()

    @_transaction
    def reset_failed(self, batch_id: str, codes: Sequence[str] | None) -> int:
        record = self._record(batch_id)
        if record.batch.state not in RETRIED:
            raise StateConflict(batch_id, record.batch.state, BatchState.IN_PROGRESS)
        whole = codes is None or not NEVER_RAN.keys().isdisjoint(codes)
        chosen = [
            s
            for s in record.shards
            if (whole and s.state is _S.CANCELLED and s.result is None)
            or any(record.again(row, codes) for row in s.rows)
        ]
        to_run = sum(sum(record.again(row, codes) for row in s.rows) if s.rows else s.shard.requests for s in chosen)
        if to_run:
            old = record.batch
            again, window = None if codes is None else tuple(codes), None
            if old.state is BatchState.EXPIRED and old.options.completion_window is not None and not whole:
                window = self._clock.now() + timedelta(seconds=old.options.completion_window)
            if self.find_unfinished(old.fingerprint) is not None:
                raise StateConflict(batch_id, old.state, BatchState.IN_PROGRESS)
            fresh: dict[str, Any] = dict.fromkeys(("reason", "ended_at", "finalizing_at"))
            fresh |= {"state": BatchState.IN_PROGRESS, "last_change": uuid4()}
            record.batch = replace(old, retry_codes=again, expires_at=window, **fresh)
            for s in chosen:
                record.back_to_pending(s, codes)
                s.attempts = s.lost = 0
        return to_run

    @_transaction
    def delete(self, batch_id: str) -> None:
        batch = self.get(batch_id)
        if batch.state not in ENDED:
            raise StateConflict(batch_id, batch.state, "removed")
        del self._batches[batch_id]

    @_transaction
    def queue_window(self, batch_id: str, *, spare: int) -> list[int]:
        if batch_id not in self._batches or self.get(batch_id).state is not BatchState.IN_PROGRESS:
            return []
        shards = self._batches[batch_id].shards
        room = spare + sum(s.state is _S.RUNNING for s in shards) - sum(s.state is _S.QUEUED for s in shards)
        chosen = [s for s in shards if s.state is _S.PENDING][: max(0, room)]
        for s in chosen:
            s.state, s.queued_at = _S.QUEUED, self._clock.now()
        return [s.shard.number for s in chosen]

    @_transaction
    def claim(
        self, batch_id: str, *, number: int | None, owner: str, lease: float, engine: EngineIdentity | None = None
    ) -> Attempt | None:
        record = self._batches.get(batch_id)
        if record is None or record.batch.state not in (BatchState.IN_PROGRESS, BatchState.CANCELLING):
            return None
        free = [s for s in record.shards if s.state in (_S.PENDING, _S.QUEUED) and number in (None, s.shard.number)]
        if not free:
            return None
        s, now = free[0], self._clock.now()
        s.state, s.owner, s.token, s.attempts = _S.RUNNING, owner, next(self._tokens), s.attempts + 1
        s.lease_until, s.engine = now + timedelta(seconds=lease), engine or s.engine
        record.batch = replace(record.batch, started_at=record.batch.started_at or now)
        lines = range(s.shard.first_line, s.shard.first_line + s.shard.lines)
        return Attempt(
            batch=record.batch,
            shard=s.shard,
            token=s.token,
            number=s.attempts,
            lost=s.lost,
            rejected=frozenset(line.line for line in record.rejected if line.line in lines),
            previous_key=s.result.key if s.result else None,
            engine=s.engine,
            directive=self._directive(record.batch),
        )

    @_transaction
    def heartbeat(self, beats: Sequence[Beat], *, lease: float) -> Mapping[int, Directive]:
        wanted = {}
        for beat in beats:
            record, s = self._held(beat.token)
            wanted[beat.token] = Directive.LOST if record is None else self._directive(record.batch)
            if s is not None:
                s.counts, s.lease_until = beat.counts, self._clock.now() + timedelta(seconds=lease)
        return wanted

    @_transaction
    def seal(self, attempt: Attempt, result: SealedResult, rows: Iterable[RequestRow]) -> None:
        kept = list(rows)
        if not len(kept) == result.counts.finished == attempt.shard.requests:
            raise ValueError(f"{attempt.batch.id}: shard {attempt.shard.number} is not answered in full")
        record = self._batches.get(attempt.batch.id)
        s = record.shards[attempt.shard.number] if record else None
        if s is not None and s.result is not None and s.result.key == result.key:
            return
        if s is None or s.token != attempt.token or s.state is not _S.RUNNING:
            raise LostLease(f"{attempt.batch.id}: shard {attempt.shard.number}")
        s.state, s.owner, s.lease_until = _S.DONE, None, None
        s.result, s.counts, s.rows = result, result.counts, kept

    @_transaction
    def release(self, attempt: Attempt) -> None:
        record, s = self._held(attempt.token)
        if record is not None and s is not None:
            record.back_to_pending(s, record.batch.retry_codes)

    @_transaction
    def rescue(self, *, owners: Sequence[str] = ()) -> list[str]:
        now, touched = self._clock.now(), set()
        for record, s in self._running():
            if s.owner in owners or (s.lease_until is not None and s.lease_until < now):
                record.back_to_pending(s, record.batch.retry_codes)
                s.lost += 1
                touched.add(record.batch.id)
        return sorted(touched)

    @_transaction
    def owners(self) -> list[str]:
        return sorted({s.owner for _, s in self._running() if s.owner is not None})

    @_transaction
    def engines(self, batch_id: str) -> list[EngineIdentity]:
        record = self._batches.get(batch_id)
        found = {s.engine for s in (record.shards if record else ()) if s.engine is not None}
        return sorted(found, key=str)

    @_transaction
    def resend(self, *, older_than: float, pool: str | None = None) -> list[tuple[str, int]]:
        now, found = self._clock.now(), []
        for record in self._batches.values():
            wanted = record.batch.state is BatchState.IN_PROGRESS and pool in (None, record.batch.options.pool)
            for s in record.shards if wanted else ():
                if s.state is _S.QUEUED and s.queued_at and s.queued_at <= now - timedelta(seconds=older_than):
                    s.queued_at = now
                    found.append((record.batch.id, s.shard.number))
        return sorted(found)

    @_transaction
    def take_turn(self, name: str, *, every: float) -> bool:
        taken = self._turns.get(name)
        if taken is not None and taken > self._clock.now() - timedelta(seconds=every):
            return False
        self._turns[name] = self._clock.now()
        return True

    def _all(self) -> list[Batch]:
        return [record.batch for record in self._batches.values()]

    def _newest_first(self) -> list[Batch]:
        return sorted(self._all(), key=lambda b: b.created_at)[::-1]

    def _record(self, batch_id: str) -> _Batch:
        if batch_id not in self._batches:
            raise NotFound(f"There is no batch {batch_id!r}.")
        return self._batches[batch_id]

    def _running(self) -> list[tuple[_Batch, _Shard]]:
        return [(b, s) for b in self._batches.values() for s in b.shards if s.state is _S.RUNNING]

    def _held(self, token: int) -> tuple[_Batch, _Shard] | tuple[None, None]:
        return next(((b, s) for b, s in self._running() if s.token == token), (None, None))

    def _rows(self, batch_id: str) -> Iterator[StoredRequest]:
        for s in self._batches[batch_id].shards if batch_id in self._batches else ():
            for row in s.rows:
                assert s.result is not None
                yield StoredRequest(batch_id, s.shard.number, s.result.key, row)

    def _failed(self, batch_id: str) -> list[StoredRequest]:
        """Failures that stand: not those that a retry under way asks again."""
        record = self._batches.get(batch_id)
        return [
            stored
            for stored in self._rows(batch_id)
            if record is not None
            and not stored.row.succeeded
            and not (record.shards[stored.shard].state in _OPEN and record.again(stored.row, record.batch.retry_codes))
        ]

    def _directive(self, batch: Batch) -> Directive:
        if batch.state in (BatchState.CANCELLING, BatchState.CANCELLED):
            return Directive.CANCEL
        if batch.state is BatchState.EXPIRED or (batch.expires_at and batch.expires_at <= self._clock.now()):
            return Directive.EXPIRE
        return Directive.PAUSE if batch.state is BatchState.PAUSED else Directive.GO
