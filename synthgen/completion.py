"""What follows when a shard ends: the next ones are queued, and whoever ended the last one completes the batch.

Everything here may be done twice or by two processes at once; guards in the store let one win.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import orjson

from synthgen.batch import Batch, Counts
from synthgen.errors import ServiceUnavailable, StateConflict, SynthgenError
from synthgen.ports import Services, ShardStatus
from synthgen.routing import route
from synthgen.sharding import manifest_key
from synthgen.states import BatchState, ShardState

logger = logging.getLogger(__name__)


def fill_window(services: Services, batch: Batch) -> None:
    """Queue as many of the batch's shards as its window allows and tell the workers, after commit.

    A broker that is away is only noted: the shards are queued, and upkeep sends them when it is back. A batch whose
    model nobody serves has nothing queued, until upkeep finds somebody.
    """
    pool = route(services, batch)
    if pool is None:
        return
    numbers = services.store.queue_window(batch.id, spare=services.limits.window)
    if not numbers:
        return
    try:
        services.dispatcher.send(pool, batch.id, numbers)
    except ServiceUnavailable as error:
        logger.warning(
            "messages not sent, upkeep will send them: batch=%s shards=%d: %s", batch.id, len(numbers), error
        )
    except Exception:  # whatever it is: the batch is stored and will run, and its user must hear its name
        logger.exception("messages not sent, upkeep will send them: batch=%s shards=%d", batch.id, len(numbers))


def finish_batch(services: Services, batch_id: str) -> Batch | None:
    """End the batch if all its shards have ended; the ended batch, or None when there is nothing to do.

    Raises SynthgenError when the shards do not account for every request: such a batch never becomes completed.
    """
    batch = services.store.get(batch_id)
    if batch.state not in _ENDINGS or not services.store.all_ended(batch_id):
        return None
    try:
        return _end(services, batch)
    except StateConflict:
        return None  # someone else ended it between our reading and our writing


_ENDINGS = frozenset({BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING})


def _end(services: Services, batch: Batch) -> Batch:
    """Every move holds only since the last: all shards had ended, and somebody may retry the batch while we write."""
    totals = _prove(batch, services.store.shards(batch.id))
    if batch.state is BatchState.IN_PROGRESS and totals.never_ran and not batch.out_of_time:
        batch = services.store.move(batch.id, BatchState.CANCELLING, reason=_LEFT_OUT, since=batch)
    if batch.state is BatchState.CANCELLING:
        final = BatchState.CANCELLED
    elif batch.state is BatchState.IN_PROGRESS and totals.never_ran:
        final = BatchState.EXPIRED
    else:
        final = BatchState.COMPLETED
        if batch.state is BatchState.IN_PROGRESS:
            batch = services.store.move(batch.id, BatchState.FINALIZING, since=batch)
    _write_manifest(services, batch, final, totals)
    services.cache.purge(namespace=batch.checkpoint_namespace)  # first: nobody comes back to a batch that has ended
    ended = services.store.move(batch.id, final, reason=batch.reason, since=batch)
    logger.info("batch ended: batch=%s status=%s succeeded=%d", batch.id, final, totals.counts.succeeded)
    return ended


_LEFT_OUT = "Cancelled before; the last retry left out what never ran."


@dataclass(slots=True)
class _Totals:
    counts: Counts = field(default_factory=Counts)
    never_ran: int = 0


def _prove(batch: Batch, shards: Iterator[ShardStatus]) -> _Totals:
    """Sum the shards, holding each to exactly one response for each of its requests.

    Raises StateConflict for one that has not ended, or no longer: a retry has begun since we looked.
    """
    totals = _Totals()
    for status in shards:
        requests = status.shard.requests
        if status.state not in (ShardState.DONE, ShardState.CANCELLED):
            raise StateConflict(f"shard {status.shard.number} of {batch.id}", status.state, "count as ended")
        if status.state is ShardState.CANCELLED and status.result is None:
            totals.never_ran += requests
            totals.counts += Counts(failed=requests)
            continue
        if status.result is None or status.result.counts.finished != requests:
            raise SynthgenError(
                f"{batch.id}: shard {status.shard.number} does not account for its {requests} requests."
            )
        totals.never_ran += status.result.never_ran
        totals.counts += status.result.counts
    if totals.counts.finished != batch.total:
        raise SynthgenError(f"{batch.id}: {totals.counts.finished} responses for {batch.total} requests.")
    return totals


def _write_manifest(services: Services, batch: Batch, final: BatchState, totals: _Totals) -> None:
    """``manifest.json``: counts and, per shard in input order, key, size and digest of its result. Streamed."""
    head = {
        "batch": batch.id,
        "name": batch.name,
        "status": str(final),
        "input": {"key": batch.input_key, "bytes": batch.input_bytes, "lines": batch.input_lines},
        "requests": batch.total,
        "rejected": batch.rejected,
        **asdict(totals.counts),
        "cost": totals.counts.known_cost,
        "saved": totals.counts.known_saved,
        "never_ran": totals.never_ran,
    }
    with services.objects.writer(manifest_key(batch.id)) as writer:
        writer.write(orjson.dumps(head)[:-1] + b',"shards":[')
        for index, status in enumerate(services.store.shards(batch.id)):
            writer.write((b",\n" if index else b"\n") + orjson.dumps(_entry(status)))
        writer.write(b"\n]}\n")
        writer.commit()


def _entry(status: ShardStatus) -> dict[str, object]:
    shard, result = status.shard, status.result
    entry: dict[str, object] = {
        "number": shard.number,
        "first_line": shard.first_line,
        "lines": shard.lines,
        "requests": shard.requests,
        "state": str(status.state),
    }
    if result is not None:
        entry |= {"key": result.key, "bytes": result.size, "blake2b": result.digest}
    return entry
