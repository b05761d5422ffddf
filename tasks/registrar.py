"""Tells the registry how this worker is, from before its engine starts until after it has stopped.

One thread, which also notices when an engine with a server of its own was given up while nobody asked it anything.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from synthgen.engines.lane import Lane
from synthgen.errors import EngineGone, SynthgenError, Unreachable
from synthgen.ports import WorkerRegistry
from synthgen.workers import WorkerState, WorkerStatus

logger = logging.getLogger(__name__)

_TICK: Final = 1.0
_BEATS_AVERAGED: Final = 4
_LAST_WORDS: Final = 5.0
"""Seconds for a beat under way when the worker ends; with the database away nobody waits for it."""
_ANNOUNCEMENT: Final = re.compile(r"\s[^.]*:$")
_CAUSE: Final = re.compile(r"^\s*[\w.]*[A-Z]\w*(Error|Exception): ")
"""How an engine's last words begin where they name an error (``telling`` puts it first)."""


def beat_interval(lease: float) -> float:
    """Seconds between beats: three may be lost before a worker is taken for gone."""
    return lease / 4


class Registrar:
    """``start`` first, ``close`` last; between them the worker says when it enters another part of its life.

    ``every`` is seconds between beats; a change of state is told within a second. ``on_gone`` is called once, with the
    reason, when the engine will never serve again.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        lane: Lane,
        *,
        worker_id: str,
        pool: str,
        every: float,
        on_gone: Callable[[str], None],
        gpu_memory: Callable[[], int | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._lane = lane
        self._id = worker_id
        self._pool = pool
        self._every = every
        self._on_gone = on_gone
        self._gpu_memory = gpu_memory
        self._now = now
        self._phase = WorkerState.STARTING
        self._reason: str | None = None
        self._told: WorkerState | None = None
        self._beats: deque[tuple[float, int, int]] = deque(maxlen=_BEATS_AVERAGED + 1)
        """When, answers and tokens until then."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="synthgen-registrar", daemon=True)

    # ---- the worker's life, told from any thread

    def start(self) -> None:
        self.tick()
        self._thread.start()

    def warm(self) -> None:
        """The engine is being started."""
        self._phase = WorkerState.WARMING

    def serve(self) -> None:
        """The worker takes shards from now on."""
        self._phase = WorkerState.IDLE

    def drain(self) -> None:
        """It takes none any more. May be called from a signal handler."""
        self._phase = WorkerState.DRAINING

    def fail(self, reason: str) -> None:
        """It is of no use any more."""
        self._reason = _first_sentences(reason)

    def close(self) -> None:
        """A worker that failed leaves its reason behind, any other is forgotten."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS)
        if self._thread.is_alive():
            return
        if self._lane.gone is not None:  # a shard may have met it before the last look
            self.fail(self._lane.gone)
        try:
            if self._reason is None:
                self._registry.leave(self._id)
            else:
                self.tick()
        except SynthgenError as error:
            logger.warning("the registry was not told that this worker ends: %s", error)

    # ---- the registrar's thread

    def _run(self) -> None:
        while not self._ended.wait(min(_TICK, self._every)):
            try:
                self.tick()
            except SynthgenError as error:
                logger.warning("no sign of life in the registry: %s", error)
            except Exception:
                logger.exception("registrar failed")

    def tick(self) -> None:
        """Look at the engine; tell the registry what is new, or that nothing is. Raises ServiceUnavailable."""
        self._look_after_engine()
        state, now = self._state(), self._now()
        if state is self._told and self._beats and now - self._beats[-1][0] < self._every:
            return
        if state is not self._told:
            because = f": {self._reason}" if self._reason else ""
            logger.info("worker is %s%s", state, because)
        self._told = state
        self._beats.append((now, self._lane.answered, self._lane.tokens))
        self._registry.beat(self._status(state))

    def _look_after_engine(self) -> None:
        if self._reason is not None or self._phase in (WorkerState.STARTING, WorkerState.WARMING):
            return
        if self._lane.gone is None and not self._lane.engine.ready:
            with suppress(Unreachable, EngineGone):
                self._lane.health()
        if self._lane.gone is not None:
            self.fail(self._lane.gone)
            self._on_gone(self._lane.gone)

    def _state(self) -> WorkerState:
        if self._reason is not None:
            return WorkerState.FAILED
        if self._phase is not WorkerState.IDLE:
            return self._phase
        if not self._lane.engine.ready:
            return WorkerState.WARMING
        answered_since = self._lane.answered - self._beats[-1][1] if self._beats else 0
        if self._lane.outstanding or answered_since:
            return WorkerState.BUSY
        return WorkerState.ASLEEP if self._lane.engine.asleep else WorkerState.IDLE

    def _status(self, state: WorkerState) -> WorkerStatus:
        lane, engine = self._lane, self._lane.engine
        moment = datetime.now(UTC)  # the registry's own clock counts
        per_second = self._rates()
        return WorkerStatus(
            id=self._id,
            host=socket.gethostname(),
            pool=self._pool,
            engine=lane.name,
            engine_version=engine.version,
            models=engine.models,
            state=state,
            reason=self._reason,
            in_flight=lane.outstanding,
            capacity=lane.in_flight,
            requests_per_second=per_second[0],
            tokens_per_second=per_second[1],
            gpu_memory=None if self._gpu_memory is None else self._gpu_memory(),
            started_at=moment,
            beat_at=moment,
        )

    def _rates(self) -> tuple[float, float]:
        """Answers and tokens per second over the last beats."""
        (began, answers, tokens), (ended, more_answers, more_tokens) = self._beats[0], self._beats[-1]
        seconds = ended - began
        return ((more_answers - answers) / seconds, (more_tokens - tokens) / seconds) if seconds > 0 else (0.0, 0.0)


@contextmanager
def registered(registrar: Registrar) -> Iterator[Registrar]:
    """In the registry from here to the end of the block; what ends the block with an error is told there."""
    registrar.start()
    try:
        yield registrar
    except Exception as error:
        registrar.fail(str(error) or repr(error))
        raise
    finally:
        registrar.close()


def _first_sentences(reason: str) -> str:
    """One line of it, without the announcement of more lines, and the error that an engine names as the cause: the
    rest of its last words is in the worker's log."""
    first, *words = reason.strip().splitlines() or [""]
    cause = next((line.strip() for line in words[:1] if _CAUSE.search(line)), "")
    return " ".join(filter(None, (_ANNOUNCEMENT.sub("", first), cause)))
