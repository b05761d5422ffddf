"""Puts right what crashes, lost messages and passing time leave behind. Many may run it at once, any time.

Beat runs it; where no beat runs, the workers do. ``turns`` in the store let one process per period do the work.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

from synthgen.batch import Batch
from synthgen.completion import fill_window, finish_batch
from synthgen.control import rescue, wind_down
from synthgen.errors import DatabaseUnavailable, NotFound, ServiceUnavailable, SynthgenError
from synthgen.ports import Services
from synthgen.sharding import PREFIX, batch_of, input_key, manifest_key
from synthgen.states import BatchState
from synthgen.storage_mark import advice, is_ours

logger = logging.getLogger(__name__)

_SWEEP_EVERY = 600.0
_MOVING = (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING, BatchState.PAUSED)


def run_upkeep(services: Services, *, every: float) -> bool:
    """One round, unless another process had its turn within ``every`` seconds; whether it was ours."""
    if not services.store.take_turn("upkeep", every=every):
        return False
    rescue(services)
    resend(services)
    for batch in services.store.batches(_MOVING):
        _one_step(services, batch, move_on)
    sweep_in_turn(services, every=max(every, _SWEEP_EVERY))
    return True


def resend(services: Services, *, older_than: float | None = None, pool: str | None = None) -> bool:
    """Send again what was sent and never claimed: its message is lost, or its worker died. Whether all could be.

    Or a busy worker of the pool holds it, and one that has a place free asks for it (``older_than`` in seconds). A pool
    that cannot be told is only noted: the others must not wait for it, and its own shards have their turn again.
    """
    deaf: set[str] = set()
    stale: defaultdict[str, list[int]] = defaultdict(list)
    age = services.limits.resend_after if older_than is None else older_than
    for batch_id, number in services.store.resend(older_than=age, pool=pool):
        stale[batch_id].append(number)
    for batch_id, numbers in stale.items():
        where = services.store.get(batch_id).options.pool
        if where is None or where in deaf:
            continue
        try:
            services.dispatcher.send(where, batch_id, numbers)
        except ServiceUnavailable as error:
            deaf.add(where)
            logger.warning("messages not sent again: pool=%s batch=%s: %s", where, batch_id, error)
    return not deaf


def move_on(services: Services, batch: Batch) -> None:
    """Whatever this batch waits for that nobody else may be doing. Read anew: a whole round may lie behind its page."""
    batch = services.store.get(batch.id)
    expired = batch.expires_at is not None and services.store.is_overdue(batch.id)
    if batch.state is BatchState.PAUSED and expired:
        batch = services.store.move(batch.id, BatchState.IN_PROGRESS, since=batch)  # wound down like a running one
    if batch.state is BatchState.CANCELLING or (batch.state is BatchState.IN_PROGRESS and expired):
        wind_down(services, batch)
    elif batch.state is BatchState.IN_PROGRESS:
        fill_window(services, batch)
        finish_batch(services, batch.id)
    elif batch.state is BatchState.FINALIZING:
        finish_batch(services, batch.id)


def _never() -> bool:
    return False


def sweep_in_turn(services: Services, *, every: float = _SWEEP_EVERY, stopped: Callable[[], bool] = _never) -> None:
    """Sweep, unless another process has within ``every`` seconds."""
    if services.store.take_turn("sweep", every=every):
        sweep(services, stopped=stopped)


def sweep(services: Services, *, stopped: Callable[[], bool] = _never) -> None:
    """Remove what the cache need not keep; and where the storage is ours, what no row points at or nobody finishes.

    A storage may be long to read: ``stopped`` is asked before each object.
    """
    services.cache.shrink(max_bytes=services.limits.cache_max_bytes)
    if services.limits.orphan_age == math.inf:
        return
    if not is_ours(services):
        logger.warning("%s", advice(services.store.identity(), services.objects))
        return
    services.objects.sweep_uploads(older_than=services.limits.orphan_age)
    services.objects.delete(_orphans(services, stopped))


def _one_step(services: Services, batch: Batch, step: Callable[[Services, Batch], None]) -> None:
    """One batch's trouble must not keep the others waiting: the storage may fail for one of its objects alone."""
    try:
        step(services, batch)
    except DatabaseUnavailable:
        raise
    except SynthgenError as error:
        logger.error("upkeep: batch=%s: %s", batch.id, error)


def _orphans(services: Services, stopped: Callable[[], bool]) -> Iterator[str]:
    """Old objects without a row: of batches that do not exist, and results that no shard names.

    Streamed, so that a sweep that is cut short has removed what it has found.
    """
    now = services.clock.now()
    known: dict[str, set[str] | None] = {}
    for info in services.objects.list(PREFIX):
        if stopped():
            return
        batch_id = batch_of(info.key)
        if batch_id is None or (now - info.modified).total_seconds() < services.limits.orphan_age:
            continue
        if batch_id not in known:
            known = {batch_id: _keys_of(services, batch_id)}
        keys = known[batch_id]
        if keys is None or info.key not in keys:
            yield info.key


def _keys_of(services: Services, batch_id: str) -> set[str] | None:
    try:
        services.store.get(batch_id)
    except NotFound:
        return None
    results = {status.result.key for status in services.store.shards(batch_id) if status.result is not None}
    return results | {input_key(batch_id), manifest_key(batch_id)}
