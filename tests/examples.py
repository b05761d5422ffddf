"""Batches, shards, rows and cache entries for tests, complete and consistent, with what a test cares about changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from hashlib import blake2b
from operator import add
from typing import Any

from synthgen.batch import Attempt, Batch, BatchOptions, Counts, Shard, new_batch_id
from synthgen.ports import BatchStore, CacheEntry, RequestRow, SealedResult
from synthgen.request import Rejected
from synthgen.sharding import result_key
from synthgen.states import BatchState
from synthgen.workers import WorkerState, WorkerStatus


def some_shards(count: int, *, requests: int = 3) -> list[Shard]:
    """Without rejected lines: each has as many lines as requests, of ten bytes."""
    return [
        Shard(n, n * requests * 10, (n + 1) * requests * 10, n * requests + 1, requests, requests) for n in range(count)
    ]


def some_batch(shards: Sequence[Shard], *, rejected: int = 0, window: float | None = None, **changes: Any) -> Batch:
    """In progress, of a fingerprint of its own; ``window`` is its completion window in seconds."""
    now = datetime.now(UTC)
    total = sum(shard.requests for shard in shards)
    batch_id = new_batch_id()
    values: dict[str, Any] = {
        "id": batch_id,
        "name": "questions.jsonl",
        "state": BatchState.IN_PROGRESS,
        "options": BatchOptions(completion_window=window),
        "fingerprint": batch_id,
        "created_at": now,
        "input_key": f"batches/{batch_id}/input.jsonl",
        "input_bytes": sum(shard.end - shard.start for shard in shards),
        "input_lines": total + rejected,
        "total": total,
        "rejected": rejected,
        "shards": len(shards),
        "expires_at": None if window is None else now + timedelta(seconds=window),
    }
    return Batch(**values | changes)


def stored_batch(
    store: BatchStore, *, shards: int = 2, requests: int = 3, rejected: Sequence[Rejected] = (), **changes: Any
) -> Batch:
    parts = some_shards(shards, requests=requests)
    return store.create(some_batch(parts, rejected=len(rejected), **changes), parts, rejected)


def rows_of(shard: Shard, *, failed: Mapping[int, str] | None = None, **changes: Any) -> list[RequestRow]:
    """A row per line of the shard; ``failed`` gives the error codes of lines that did not succeed."""
    codes = failed or {}
    return [_row(line, codes.get(line), changes) for line in range(shard.first_line, shard.first_line + shard.requests)]


def _row(line: int, code: str | None, changes: Mapping[str, Any]) -> RequestRow:
    row = RequestRow(
        line=line,
        custom_id=f"question-{line}",
        succeeded=code is None,
        cached=False,
        prompt_tokens=10,
        completion_tokens=5,
        cost=0.25,
        latency_ms=120,
        attempts=1,
        status_code=200 if code is None else 400,
        error_code=code,
        error_message=None if code is None else f"{code} at line {line}",
        offset=line * 100,
        length=100,
    )
    return row._replace(**changes)


def counts_of(rows: Sequence[RequestRow]) -> Counts:
    return reduce(add, map(_counts_of_row, rows), Counts())


def _counts_of_row(row: RequestRow) -> Counts:
    cost, unknown = row.cost or 0.0, int(row.succeeded and row.cost is None)
    tokens = (row.prompt_tokens, row.completion_tokens)
    if row.cached:
        return Counts(1, 0, 1, 0, 0, *tokens, saved=cost, unpriced_cached=unknown)
    won = int(row.succeeded)
    return Counts(won, 1 - won, 0, *tokens, cost=cost, unpriced=unknown)


def result_of(attempt: Attempt, rows: Sequence[RequestRow]) -> SealedResult:
    key = result_key(attempt.batch.id, attempt.shard.number, attempt.token)
    return SealedResult(key, 100 * len(rows), "d" * 64, counts_of(rows))


def claimed(store: BatchStore, batch_id: str, *, number: int | None = None, owner: str = "worker-1") -> Attempt:
    attempt = store.claim(batch_id, number=number, owner=owner, lease=60)
    assert attempt is not None
    return attempt


def sealed(store: BatchStore, batch_id: str, *, failed: Mapping[int, str] | None = None, **changes: Any) -> Attempt:
    """Claim the lowest free shard and seal it."""
    attempt = claimed(store, batch_id)
    rows = rows_of(attempt.shard, failed=failed, **changes)
    store.seal(attempt, result_of(attempt, rows), rows)
    return attempt


def some_key(seed: object) -> bytes:
    return blake2b(repr(seed).encode(), digest_size=32).digest()


def some_entry(seed: object, **changes: Any) -> CacheEntry:
    values: dict[str, Any] = {
        "key": some_key(seed),
        "namespace": "default",
        "model": "some-model",
        "body": b'{"choices":[{"message":{"content":"' + repr(seed).encode() + b'"}}]}',
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost": 0.25,
        "origin": (1 << 63) - 1,
        "attempts": 2,
        "latency_ms": 120,
        "status_code": 200,
        "request_id": "req-1",
        "engine": "vllm/0.32.0@9f3c1b",
        "ttft_ms": 81.5,
        "itl_ms": 12.25,
    }
    return CacheEntry(**values | changes)


def some_worker(worker_id: str = "host-1/ns/1/1.00", **changes: Any) -> WorkerStatus:
    """An idle worker of the pool ``gpu`` that serves ``m``; its times are whatever the registry makes of them."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "id": worker_id,
        "host": "host-1",
        "pool": "gpu",
        "engine": "vllm",
        "engine_version": "0.11.0",
        "models": ("m",),
        "state": WorkerState.IDLE,
        "reason": None,
        "in_flight": 0,
        "capacity": 256,
        "requests_per_second": 0.0,
        "tokens_per_second": 0.0,
        "gpu_memory": None,
        "started_at": now,
        "beat_at": now,
    }
    return WorkerStatus(**values | changes)
