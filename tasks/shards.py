"""The Celery tasks: thin, idempotent, safe to lose or double. What they do is in ``synthgen``.

An error ends here, logged: the shard's row says what is to be done next, not Celery's retry.
"""

from __future__ import annotations

import logging

from synthgen.errors import NotFound, ServiceUnavailable, SynthgenError
from synthgen.run_shard import Worker, run_shard
from synthgen.upkeep import run_upkeep
from tasks import process
from tasks.app import app

logger = logging.getLogger(__name__)

_LOOK = 0.2
"""Seconds between two looks at an engine that is not ready."""


@app.task(name="synthgen.run_shard")  # type: ignore[untyped-decorator]
def run_shard_task(batch_id: str, number: int) -> None:
    """Shard ``number`` of the batch may be ready; if it is not, somebody else has it."""
    here = process.current()
    with here.idleness.busy():
        _run(here, batch_id, number)
    if here.worker.lane.gone:
        process.leave(here.worker.lane.gone)


def _run(here: process.Process, batch_id: str, number: int) -> None:
    _wait_for_engine(here.worker)
    try:
        if here.worker.stopping.is_set():  # the message is acknowledged already; another worker needs one
            here.services.dispatcher.send(here.settings.pool, batch_id, [number])
            return
        run_shard(here.services, here.worker, batch_id, number=number)
    except NotFound:
        logger.info("hint for a batch that is gone: shard=%s/%d", batch_id, number)
    except ServiceUnavailable as error:
        logger.error("shard left for now, upkeep will send it again: shard=%s/%d: %s", batch_id, number, error)
    except SynthgenError as error:
        logger.error("shard not run: shard=%s/%d: %s", batch_id, number, error)


def _wait_for_engine(worker: Worker) -> None:
    """While it is started again the shard is left unclaimed, for others to take."""
    while not worker.lane.engine.ready and not worker.stopping.is_set():
        worker.stopping.wait(_LOOK)


@app.task(name="synthgen.upkeep")  # type: ignore[untyped-decorator]
def upkeep_task() -> None:
    """One round of upkeep, unless another process has just done it."""
    here = process.current()
    try:
        run_upkeep(here.services, every=here.settings.upkeep_every * 0.9)
    except SynthgenError as error:
        logger.warning("upkeep skipped: %s", error)
