"""``synthgen status``: one reading of a batch."""

from __future__ import annotations

import click

from cli import quantities as q
from cli.connection import batch_argument, json_option, services_in_force
from cli.console import put_json, put_pairs
from cli.progress import elapsed_of, error_lines, facts
from synthgen.batch import Progress
from synthgen.routing import waiting_for
from synthgen.workers import AUTO

_POOLS = {None: "none: worked on by 'synthgen run'", AUTO: "the one that serves its model"}


@click.command()
@batch_argument
@json_option
def command(reference: str, *, as_json: bool) -> None:
    """Show how far a batch is."""
    with services_in_force() as services:
        progress = services.store.progress(services.store.resolve(reference).id)
        missing = waiting_for(services, progress.batch)
        if as_json:
            put_json(progress.as_dict() | {"waiting_for": missing})
            return
        groups = services.store.error_groups(progress.batch.id) if progress.counts.failed else []
    waiting = [("waiting", missing)] if missing else []
    put_pairs([*_head(progress), *waiting, *facts(progress), *_tail(progress), *error_lines(groups)])


def _head(progress: Progress) -> list[tuple[str, str]]:
    batch = progress.batch
    pairs = [("id", batch.id), ("name", batch.name), ("status", str(batch.state))]
    if batch.reason:
        pairs.append(("reason", batch.reason))
    done = progress.counts.finished
    pairs.append(("done", f"{q.count(done)} of {q.count(batch.total)} ({q.share(done, batch.total)})"))
    if progress.kept:
        pairs.append(
            ("kept", f"at least {q.of(progress.kept, 'answer')} of unsealed shards, which will not be asked for again")
        )
    return pairs


def _tail(progress: Progress) -> list[tuple[str, str]]:
    batch = progress.batch
    shards = ", ".join(f"{number:,} {state}" for state, number in progress.shards.items() if number)
    pairs = [
        ("now", f"{q.count(progress.running)} running, {q.count(progress.pending)} pending"),
        ("shards", shards),
        ("pool", _POOLS.get(batch.options.pool, batch.options.pool or "")),
        ("created", q.moment(batch.created_at)),
        ("started", q.moment(batch.started_at)),
        ("ended", q.moment(batch.ended_at)),
        ("time", q.clock(elapsed_of(progress))),
    ]
    if batch.expires_at is not None:
        pairs.append(("expires", q.moment(batch.expires_at)))
    return pairs
