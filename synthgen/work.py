"""The embedded worker: a few threads that run the shards of one batch in this very process, without a queue.

Several processes may work on the same batch; the claim statement shares its shards out among them.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from synthgen.batch import Batch
from synthgen.completion import finish_batch
from synthgen.control import rescue
from synthgen.errors import EngineGone
from synthgen.ports import Services
from synthgen.run_shard import Worker, run_shard
from synthgen.states import ENDED, BatchState
from synthgen.upkeep import move_on, sweep_in_turn

logger = logging.getLogger(__name__)

_IDLE = 0.2
_LOOK = 60.0
"""Seconds between two looks at whether it is time to sweep."""
_MOMENT = 1.0
"""Seconds for a sweep in progress to come to an end when the work is over."""


def work_on(services: Services, worker: Worker, batch_id: str, *, shards: int) -> Batch:
    """Run the batch until it has ended or is paused, or until the worker is told to stop; the batch as it is then.

    ``shards`` run at once. Raises what run_shard raises.
    """
    rescue(services)
    over = threading.Event()
    # A daemon, and not of the pool: reading a large storage takes minutes, for which neither the end nor Ctrl-C waits.
    sweeper = threading.Thread(target=_keep_swept, args=(services, worker, over), name="synthgen-sweep", daemon=True)
    sweeper.start()
    with ThreadPoolExecutor(max_workers=shards, thread_name_prefix="synthgen-shard") as pool:
        loops = [pool.submit(_loop, services, worker, batch_id) for _ in range(shards)]
        try:
            wait(loops, return_when=FIRST_EXCEPTION)
        finally:  # one has failed, or this thread was interrupted: the others must not go on to the batch's end
            if not all(loop.done() and loop.exception() is None for loop in loops):
                worker.stopping.set()
            over.set()
    sweeper.join(_MOMENT)
    for loop in loops:
        loop.result()
    if worker.lane.gone:
        raise EngineGone(worker.lane.gone, code="engine_gone")
    return finish_batch(services, batch_id) or services.store.get(batch_id)


def _loop(services: Services, worker: Worker, batch_id: str) -> None:
    while not worker.stopping.is_set():
        if run_shard(services, worker, batch_id):
            continue
        batch = services.store.get(batch_id)
        if batch.state in ENDED or batch.state is BatchState.PAUSED:
            return
        rescue(services)
        move_on(services, batch)
        worker.stopping.wait(_IDLE)


def _keep_swept(services: Services, worker: Worker, over: threading.Event) -> None:
    """Beside the work: where only ``run`` works nobody else does it. A sweep that fails is no failure of the batch."""

    def stopped() -> bool:
        return over.is_set() or worker.stopping.is_set()

    while not stopped():
        try:
            sweep_in_turn(services, stopped=stopped)
        except Exception:
            if not stopped():  # else it was left alone, and its database closed
                logger.exception("sweep failed")
        over.wait(_LOOK)
