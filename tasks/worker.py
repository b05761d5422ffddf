"""Hooks a worker's life into Celery's signals, and starts worker and beat for the CLI.

Imported by ``tasks.app``'s users that run tasks; a process that only sends never loads an engine.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from typing import Any, NoReturn

from celery import bootsteps, signals
from celery.concurrency.thread import TaskPool
from celery.worker import state

from synthgen.errors import SynthgenError
from synthgen.settings import Settings, load_settings
from synthgen.sharding import MOST_SHARDS, default_shards
from tasks import process
from tasks.app import app

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
logger = logging.getLogger(__name__)


def run_worker(settings: Settings, *, loglevel: str = "INFO", until_stdin_closes: bool = False) -> None:
    """Run a worker of ``settings.pool`` in this process until it is stopped; it never returns, it exits."""
    settings.publish()
    if until_stdin_closes:
        threading.Thread(target=_end_with_stdin, name="synthgen-supervisor", daemon=True).start()
    # Two of one name on a host lock each other out of their control queue, and so does a connection that is not yet
    # known to be dead: so no name is used twice.
    host = f"{settings.pool}-{secrets.token_hex(3)}@%h"
    app.worker_main(["worker", "--loglevel", loglevel, "--hostname", host, "--without-gossip", "--without-mingle"])
    sys.exit(state.should_terminate or state.should_stop or 0)  # worker_main keeps the exit code to itself


def _end_with_stdin() -> None:
    """Nobody writes to it: when it closes, the process that started this one is gone."""
    while os.read(0, 1):
        pass
    logger.error("the process that started this worker is gone: it ends")
    os.kill(os.getpid(), signal.SIGTERM)


def run_beat(settings: Settings, *, loglevel: str = "INFO") -> None:
    """Run celery beat in this process until it is stopped."""
    settings.publish()
    app.start(["beat", "--loglevel", loglevel])


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(loglevel: int | str | None = None, **_: Any) -> None:
    logging.basicConfig(level=loglevel or logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    # It warns, at every start, that direct exchanges cannot delay messages; none of ours is delayed.
    logging.getLogger("kombu.transport.native_delayed_delivery").setLevel(logging.ERROR)
    logging.getLogger("celery.worker.request").addFilter(_calm)
    if logging.getLogger().level > logging.DEBUG:  # two lines a message, and not one says which shard: run_shard does
        logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
        logging.getLogger("celery.app.trace").setLevel(logging.WARNING)


def _calm(record: logging.LogRecord) -> bool:
    """A message that came by a connection now lost cannot be acknowledged: it comes again, and finds nothing to do.

    Celery calls that critical, and shows a traceback.
    """
    if str(record.msg).startswith("Couldn't ack"):
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return True


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    """Before the first message: what cannot start says so in one sentence and ends the worker."""
    if sender.pool_cls is not TaskPool and sender.pool_cls != "threads":
        raise SystemExit("synthgen workers need Celery's thread pool (one engine per process): leave out -P/--pool.")
    _set_up_logging(sender.loglevel)  # Celery does it only when all is started, and an engine's words belong in the log
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _give_up)  # an engine may take minutes, and Celery listens only after that
    chosen = sender.concurrency != app.conf.worker_concurrency or load_settings().shards is not None
    try:
        process.start(concurrency=int(sender.concurrency) if chosen else MOST_SHARDS)
    except SynthgenError as error:
        raise SystemExit(f"Error: {error}") from error
    except Exception as error:  # Celery would note it and go on, without anything to run a shard with
        logger.exception("the worker cannot start")
        raise SystemExit(f"Error: the worker cannot start: {error!r}.") from error
    if not chosen:  # how much an engine can take is known only now, and Celery's pool is made after this
        sender.concurrency = default_shards(process.current().worker.lane.in_flight)


def _give_up(*_: object) -> NoReturn:
    raise SystemExit(0)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _tell(sender: Any, **_: Any) -> None:
    here = process.current()
    process.serve(sender.controller.concurrency)
    lane = here.worker.lane
    logger.info(
        "ready: pool=%s engine=%s in_flight=%d shards=%d",
        *(here.settings.pool, lane.name, lane.in_flight, sender.controller.concurrency),
    )


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    """At once: Celery's own thread may be stuck with a broker that does not answer."""
    process.drain()


class _Drain(bootsteps.StartStopStep):  # type: ignore[misc]
    """However the worker is ended: by a signal, by Flower, by an error of Celery's own."""

    def close(self, _: Any) -> None:
        process.drain()


app.steps["worker"].add(_Drain)


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(sender: Any, **_: Any) -> None:
    if sender.exitcode and not state.should_stop:  # an end by an error is not a good end
        state.should_stop = sender.exitcode
    process.stop()
