"""Our values as rows of the tables and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from synthgen.batch import (
    COUNT_FIELDS,
    Batch,
    BatchOptions,
    CacheMode,
    Counts,
    Directive,
    EngineIdentity,
    OnInvalid,
    Shard,
)
from synthgen.ports import SealedResult
from synthgen.states import BatchState

Columns = Mapping[str, Any] | sa.RowMapping
"""A row by the names of its columns."""

_BATCH_FIELDS = tuple(f.name for f in dataclasses.fields(Batch))
_OPTION_FIELDS = frozenset(f.name for f in dataclasses.fields(BatchOptions))
_MOMENTS = ("created_at", "started_at", "finalizing_at", "ended_at", "expires_at")


def storable(text: str) -> str:
    """PostgreSQL's text cannot hold NUL or half a surrogate pair, JSON strings can: these become U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def batch_values(batch: Batch) -> dict[str, Any]:
    """All columns of ``batches`` but the times, which are the database's."""
    values = {name: getattr(batch, name) for name in _BATCH_FIELDS if name not in _MOMENTS}
    return values | {
        "name": storable(batch.name),
        "state": str(batch.state),
        "options": dataclasses.asdict(batch.options),
        "pool": batch.options.pool,
        "retry_codes": None if batch.retry_codes is None else list(batch.retry_codes),
    }


def batch_from(row: Columns) -> Batch:
    values = {name: row[name] for name in _BATCH_FIELDS}
    values |= {name: utc(row[name]) for name in _MOMENTS}
    codes = row["retry_codes"]
    return Batch(
        **values
        | {
            "state": BatchState(row["state"]),
            "options": _options_from(row["options"], pool=row["pool"]),
            "retry_codes": None if codes is None else tuple(codes),
        }
    )


def counts_from(row: Columns) -> Counts:
    return Counts(*(row[name] for name in COUNT_FIELDS))


def counts_values(counts: Counts) -> dict[str, Any]:
    return {name: getattr(counts, name) for name in COUNT_FIELDS}


def shard_from(row: Columns, *, marks: list[int] | None = None) -> Shard:
    flat = marks or []
    return Shard(
        number=row["number"],
        start=row["start"],
        end=row["end"],
        first_line=row["first_line"],
        lines=row["lines"],
        requests=row["requests"],
        marks=tuple(zip(flat[::2], flat[1::2], strict=True)),
    )


def result_from(row: Columns) -> SealedResult | None:
    if row["result_key"] is None:
        return None
    return SealedResult(
        key=row["result_key"],
        size=row["result_size"],
        digest=row["result_digest"],
        counts=Counts(**row["result_counts"]),
        never_ran=row["never_ran"],
    )


def engine_from(stored: Mapping[str, Any] | None) -> EngineIdentity | None:
    return None if stored is None else EngineIdentity(**stored)


def directive_for(state: BatchState, *, overdue: bool) -> Directive:
    """What a batch in this state wants of a running attempt; ``overdue``: its completion window has ended."""
    match state:
        case BatchState.CANCELLING | BatchState.CANCELLED:
            return Directive.CANCEL
        case BatchState.EXPIRED:
            return Directive.EXPIRE
        case _ if overdue:
            return Directive.EXPIRE
        case BatchState.PAUSED:
            return Directive.PAUSE
        case _:
            return Directive.GO


def utc(moment: datetime | None) -> datetime | None:
    """PostgreSQL answers in the session's time zone."""
    return None if moment is None else moment.astimezone(UTC)


def _options_from(stored: Mapping[str, Any], *, pool: str | None) -> BatchOptions:
    """Options that only a newer release knows are passed over: workers of two releases may share a database.

    ``pool`` is the one that the batch has now, None in rows of a release that kept it among the options only.
    """
    values = {name: value for name, value in stored.items() if name in _OPTION_FIELDS}
    values |= {"on_invalid": OnInvalid(stored["on_invalid"]), "cache": CacheMode(stored["cache"])}
    values["pool"] = pool or stored["pool"]
    return BatchOptions(**values)
