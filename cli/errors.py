"""``synthgen errors``: failed rows and rejected lines, by cause and one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import click

from cli import quantities as q
from cli.connection import batch_argument, json_option, services_in_force
from cli.console import put, put_json, put_table, say
from synthgen.batch import Batch
from synthgen.ports import BatchStore
from synthgen.response import NEVER_RAN
from synthgen.states import ShardState

_CUT = 200


@dataclass(frozen=True, slots=True)
class _Cause:
    kind: str
    code: str
    count: int
    message: str
    line: int


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    line: int
    custom_id: str | None
    code: str
    message: str
    status_code: int | None = None
    attempts: int | None = None


@click.command()
@batch_argument
@click.option("--code", help="Only this cause.")
@click.option(
    "--limit", type=click.IntRange(0, q.COUNT.max), default=20, show_default=True, help="Rows to list at most."
)
@json_option
def command(reference: str, *, code: str | None, limit: int, as_json: bool) -> None:
    """Show what failed, grouped by cause, then row by row.

    Failed rows first, then the rejected lines of the input, which never ran.
    """
    with services_in_force() as services:
        batch = services.store.resolve(reference)
        causes = [cause for cause in _causes(services.store, batch) if code is None or cause.code == code]
        rows = list(islice(_rows(services.store, batch, code), limit))
        untouched = _untouched(services.store, batch) if any(cause.code in NEVER_RAN for cause in causes) else 0
    if as_json:
        put_json(
            {"batch": batch.id, "causes": [_fields(cause) for cause in causes], "rows": [_fields(row) for row in rows]}
        )
    elif not causes:
        say(f"No failed or rejected rows{'' if code is None else f' with code {code}'} in {batch.id}.")
    else:
        _print(batch, causes, rows, untouched)


def _untouched(store: BatchStore, batch: Batch) -> int:
    """Requests of shards that ended before anyone began them: they are among the causes and have no rows."""
    cancelled = (s for s in store.shards(batch.id) if s.state is ShardState.CANCELLED and s.result is None)
    return sum(status.shard.requests for status in cancelled)


def _causes(store: BatchStore, batch: Batch) -> list[_Cause]:
    failed = [_Cause("failed", g.code, g.count, g.message, g.line) for g in store.error_groups(batch.id)]
    rejected: dict[str, _Cause] = {}
    for line in store.rejected(batch.id) if batch.rejected else ():
        first = rejected.get(line.code)
        number = 1 if first is None else first.count + 1
        first = first or _Cause("rejected", line.code, 1, line.message, line.line)
        rejected[line.code] = _Cause("rejected", line.code, number, first.message, first.line)
    return failed + sorted(rejected.values(), key=lambda cause: -cause.count)


def _rows(store: BatchStore, batch: Batch, code: str | None) -> Iterator[_Row]:
    failed = (
        _Row("failed", r.line, r.custom_id, r.error_code or "", r.error_message or "", r.status_code, r.attempts)
        for r in (stored.row for stored in store.failures(batch.id, code=code))
    )
    rejected = (
        _Row("rejected", line.line, None, line.code, line.message)
        for line in (store.rejected(batch.id) if batch.rejected else ())
        if code is None or line.code == code
    )
    return chain(failed, rejected)


def _fields(value: _Cause | _Row) -> dict[str, object]:
    return {name: getattr(value, name) for name in type(value).__slots__}


def _print(batch: Batch, causes: list[_Cause], rows: list[_Row], untouched: int) -> None:
    put_table(
        ("COUNT", "KIND", "CODE", "FIRST LINE", "EXAMPLE"),
        [(q.count(c.count), c.kind, c.code, str(c.line), _short(c.message)) for c in causes],
        right=(0, 3),
    )
    if rows:
        put("")
        put_table(
            ("LINE", "CUSTOM_ID", "CODE", "MESSAGE"),
            [(str(row.line), row.custom_id or "-", row.code, _short(row.message)) for row in rows],
            right=(0,),
        )
    left = sum(cause.count for cause in causes) - untouched - len(rows)
    if left > 0:
        say(f"… and {q.count(left)} more: --limit shows them, --code picks one cause.")
    if untouched:
        where = f"'synthgen results {batch.id} --only failed' lists them, too"
        say(f"Never begun, and so not listed here: {q.of(untouched, 'row')}; {where}.")


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"
