"""``synthgen list``: batches, newest first."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click
from rich.cells import cell_len, set_cell_size

from cli import quantities as q
from cli.connection import json_option, services_in_force
from cli.console import put_json, put_table, say, stdout_width
from synthgen.batch import Progress
from synthgen.states import BatchState

_ID_SHOWN = 14
"""Enough to name a batch with."""
_DISPENSABLE = (6, 7, 3, 5)
"""Columns that a narrow terminal does without: REJECTED, AGE, ROWS, FAILED."""


@click.command()
@click.option(
    "--status", type=click.Choice([state.value for state in BatchState]), multiple=True, help="Only these. Repeatable."
)
@click.option("--limit", type=q.COUNT, default=20, show_default=True, help="At most so many.")
@json_option
def command(*, status: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List batches, newest first."""
    with services_in_force() as services:
        found = services.store.list_batches(
            states=[BatchState(name) for name in status] or tuple(BatchState), limit=limit
        )
    if as_json:
        put_json([progress.as_dict() for progress in found])
    elif not found:
        say("No batches yet: 'synthgen run FILE' makes one." if not status else "No such batches.")
    else:
        heads = ("ID", "NAME", "STATUS", "ROWS", "DONE", "FAILED", "REJECTED", "AGE")
        put_table(heads, [_row(progress) for progress in found], right=(3, 4, 5, 6), drop=_DISPENSABLE)


def _row(progress: Progress) -> tuple[str, ...]:
    batch, counts = progress.batch, progress.counts
    return (
        batch.id[:_ID_SHOWN] if sys.stdout.isatty() else batch.id,
        _shortened(batch.name),
        str(batch.state),
        q.count(batch.total),
        q.share(counts.finished, batch.total),
        q.count(counts.failed),
        q.count(batch.rejected),
        q.age(datetime.now(UTC) - batch.created_at),
    )


def _shortened(name: str) -> str:
    """At most a third of the terminal: a long name would push out how far its batch is."""
    width = stdout_width() // 3
    return name if cell_len(name) <= width else set_cell_size(name, width - 1) + "…"
