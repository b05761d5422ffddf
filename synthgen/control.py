"""What a user does to a batch that exists: pause, resume, cancel, retry, remove.

Each takes effect at once for what is not sent yet; running attempts hear of it with their next heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from synthgen.batch import Batch
from synthgen.completion import fill_window, finish_batch
from synthgen.errors import InputChanged, NotFound, StateConflict, SynthgenError
from synthgen.owner import dead_owners
from synthgen.ports import Services
from synthgen.run_shard import close_shards
from synthgen.sharding import PREFIX
from synthgen.states import ENDED, BatchState

logger = logging.getLogger(__name__)


def pause(services: Services, batch_id: str, *, reason: str = "Paused by the user.") -> Batch:
    """Stop asking; what is in flight may finish. Pausing a paused batch changes nothing. Raises StateConflict."""
    batch = services.store.get(batch_id)
    if batch.state is BatchState.PAUSED:
        return batch
    return services.store.move(batch_id, BatchState.PAUSED, reason=reason)


def resume(services: Services, batch_id: str) -> Batch:
    """Go on with a paused batch. Resuming a running one only sends what ought to be moving. Raises StateConflict."""
    batch = services.store.get(batch_id)
    if batch.state is not BatchState.IN_PROGRESS:
        if batch.state is not BatchState.PAUSED:
            raise StateConflict(batch_id, batch.state, BatchState.IN_PROGRESS)
        batch = services.store.move(batch_id, BatchState.IN_PROGRESS)
    fill_window(services, batch)
    return finish_batch(services, batch_id) or batch


def cancel(services: Services, batch_id: str, *, give_up: bool = False) -> Batch:
    """End a batch early; finished rows are kept, the others become ``batch_cancelled``. Repeating it is harmless.

    Returns the batch as ``cancelled``, or as ``cancelling`` while workers still give back what they run.
    Raises StateConflict when it has ended otherwise, SynthgenError where its input cannot be read; with ``give_up``
    what was begun then counts as never run, and the answers that it has paid for are lost to it.
    """
    batch = services.store.get(batch_id)
    if batch.state is BatchState.CANCELLED:
        return batch
    if batch.state is not BatchState.CANCELLING:
        batch = services.store.move(batch_id, BatchState.CANCELLING, reason="Cancelled by the user.")
    rescue(services)  # where only ``run`` works there is no upkeep that would
    return wind_down(services, batch, give_up=give_up)


def rescue(services: Services) -> None:
    """Give back the shards of workers that fell silent, or that lived on this machine and are gone."""
    for batch_id in services.store.rescue(owners=dead_owners(services.store.owners())):
        logger.info("shards rescued: batch=%s", batch_id)


def wind_down(services: Services, batch: Batch, *, give_up: bool = False) -> Batch:
    """End all shards of a batch that is cancelling or past its window, as far as nobody runs them.

    Those whose input cannot be read are given up when a person has said so: the storage may only be away from where we
    are, and elsewhere they end with the answers that they have. Else SynthgenError is raised.
    """
    services.store.cancel_unstarted(batch.id)
    try:
        close_shards(services, batch.id, give_up=give_up)
    except (InputChanged, NotFound) as error:
        raise SynthgenError(
            f"{error} So {batch.id} cannot end from here: cancel it where SYNTHGEN_STORAGE_URL leads to its input, "
            "which keeps the answers that it has paid for, or, if that input is gone for good, run: "
            f"synthgen cancel --give-up {batch.id}"
        ) from error
    return finish_batch(services, batch.id) or services.store.get(batch.id)


def retry(services: Services, batch_id: str, *, codes: Sequence[str] | None = None) -> int:
    """Run the failed requests of an ended batch again (None: of every cause); how many. The others stay as they are.

    Raises StateConflict while the batch has not ended.
    """
    count = services.store.reset_failed(batch_id, codes)
    if count:
        fill_window(services, services.store.get(batch_id))
    return count


def remove(services: Services, batch_id: str) -> None:
    """Delete an ended batch with its objects; its answers stay in the shared cache. Raises StateConflict."""
    batch = services.store.get(batch_id)
    if batch.state not in ENDED:
        raise StateConflict(batch_id, batch.state, "removed")
    services.store.delete(batch_id)
    services.objects.delete(info.key for info in services.objects.list(f"{PREFIX}{batch_id}/"))
    services.cache.purge(namespace=batch.checkpoint_namespace)
