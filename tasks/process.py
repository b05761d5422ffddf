"""What one worker process holds for all its tasks: services, the engine on its loop, the upkeep thread.

Celery starts workers and gives tasks no place to keep things, so this is the project's one global: set when the worker
starts, before it takes a message, and closed when it stops.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state

from synthgen.errors import BadSetting, ServiceUnavailable, SynthgenError
from synthgen.ports import Services
from synthgen.run_shard import Worker
from synthgen.settings import Settings, load_settings
from synthgen.upkeep import resend, run_upkeep
from synthgen.workers import AUTO
from tasks.gpu_memory import GpuMemory
from tasks.idleness import Hunger, Idleness, IdleWatch
from tasks.registrar import Registrar, beat_interval, registered
from tasks.wiring import connect, engine_spec, make_lane, open_worker

logger = logging.getLogger(__name__)

_ON_OUR_GPUS = ("vllm", "server")
_LOOK = 1.0
"""Seconds between two looks at whether there is work."""
_OVERDUE = 2.0
"""Seconds that a shard's message is left alone, before a worker that has a place free asks for another of it."""


@dataclass(frozen=True, slots=True)
class Process:
    settings: Settings
    services: Services
    worker: Worker
    registrar: Registrar
    idleness: Idleness
    stack: ExitStack


_current: Process | None = None


def current() -> Process:
    """Raises RuntimeError outside a running worker."""
    if _current is None:
        raise RuntimeError("This process is no synthgen worker.")
    return _current


def start(*, concurrency: int) -> None:
    """Open everything that up to ``concurrency`` shard threads need. Raises SynthgenError with one sentence."""
    global _current  # noqa: PLW0603 - the module's docstring says why
    settings = load_settings()
    if settings.pool == AUTO:
        raise BadSetting(f"A worker cannot be of pool '{AUTO}': that is where batches wait that name none.")
    spec = engine_spec(settings)
    with ExitStack() as stack:
        services = stack.enter_context(
            connect(settings, patience=settings.database_patience, connections=concurrency + 4)
        )
        lane = make_lane(settings, spec)
        registrar = Registrar(
            services.registry,
            lane,
            worker_id=services.owner,
            pool=settings.pool,
            every=beat_interval(settings.lease),
            on_gone=leave,
            gpu_memory=GpuMemory(settings.gpus) if spec.kind in _ON_OUR_GPUS else None,
        )
        stack.enter_context(registered(registrar))
        registrar.warm()
        worker = stack.enter_context(open_worker(services, settings, spec, lane=lane))
        threading.Thread(
            target=_keep_up, args=(services, settings, worker.stopping), name="synthgen-upkeep", daemon=True
        ).start()
        idleness = Idleness()
        watch = IdleWatch(idleness, lane, sleep=settings.idle_sleep, leave=settings.idle_exit, end=_go_home)
        _look_on(watch.look, worker.stopping)
        _current = Process(settings, services, worker, registrar, idleness, stack.pop_all())


def serve(places: int) -> None:
    """Celery takes messages from now on, for so many shards at once."""
    here = current()
    here.registrar.serve()
    hunger = Hunger(here.idleness, places=places, ask=partial(_ask_for_more, here))
    _look_on(hunger.look, here.worker.stopping)


def _ask_for_more(here: Process) -> bool:
    """Whether that could be done. A worker whose engine is not ready leaves the shards to others."""
    if not here.worker.lane.engine.ready:
        return True
    try:
        return resend(here.services, older_than=_OVERDUE, pool=here.settings.pool)
    except ServiceUnavailable:
        return False


def drain() -> None:
    """Take no further shard; those that run give requests in flight their grace and are handed back."""
    if _current is not None:
        _current.worker.stopping.set()
        _current.registrar.drain()


def leave(reason: str) -> None:
    """End this worker with exit code 1 once its running shards are handed back: what it needs is gone for good."""
    drain()
    if state.should_stop is None:
        logger.error("this worker ends: %s", reason)
        state.should_stop = EX_FAILURE


def _go_home() -> None:
    """End this worker with exit code 0: there is no work."""
    drain()
    if state.should_stop is None:
        state.should_stop = EX_OK


def stop() -> None:
    """Close everything; afterwards the process is no worker any more."""
    global _current
    if _current is not None:
        here, _current = _current, None
        here.worker.stopping.set()
        here.stack.close()
        logger.info("stopped")


def _keep_up(services: Services, settings: Settings, stopping: threading.Event) -> None:
    """Upkeep for the case that no beat runs; a jittered pace keeps workers from asking all at once."""
    while not stopping.wait(settings.upkeep_every * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter, no secret
        try:
            run_upkeep(services, every=settings.upkeep_every)
        except SynthgenError as error:
            logger.warning("upkeep skipped: %s", error)
        except Exception:
            logger.exception("upkeep failed")


def _look_on(look: Callable[[], None], stopping: threading.Event) -> None:
    """Look, every ``_LOOK`` seconds until the worker stops, in a thread of its own."""

    def again_and_again() -> None:
        while not stopping.wait(_LOOK):
            try:
                look()
            except Exception:
                logger.exception("idle watch failed")

    threading.Thread(target=again_and_again, name="synthgen-idleness", daemon=True).start()
