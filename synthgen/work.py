"""The embedded worker: a few threads that run the shards of one batch in this very process, without a queue.

Several processes may work on the same batch; the claim statement shares its shards out among them.
"""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from synthgen.batch import Batch
from synthgen.completion import finish_batch
from synthgen.errors import EngineGone
from synthgen.ports import Services
from synthgen.run_shard import Worker, run_shard
from synthgen.states import ENDED, BatchState
from synthgen.upkeep import move_on, rescue

_IDLE = 0.2


def work_on(services: Services, worker: Worker, batch_id: str, *, shards: int) -> Batch:
    """Run the batch until it has ended or is paused, or until the worker is told to stop; the batch as it is then.

    ``shards`` run at once. Raises what run_shard raises.
    """
    rescue(services)
    with ThreadPoolExecutor(max_workers=shards, thread_name_prefix="synthgen-shard") as pool:
        loops = [pool.submit(_loop, services, worker, batch_id) for _ in range(shards)]
        try:
            wait(loops, return_when=FIRST_EXCEPTION)
        finally:  # one has failed, or this thread was interrupted: the others must not go on to the batch's end
            if not all(loop.done() and loop.exception() is None for loop in loops):
                worker.stopping.set()
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
