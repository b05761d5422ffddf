"""What a worker does when there is too little work: it asks for hints that others hold and cannot start on, its engine
sleeps after a while, it ends after a longer one.

With every worker of a pool gone the queue keeps the work; whatever watches the queue's length may start one again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from synthgen.engines.lane import Lane

_SELDOM = 192
"""Looks between two tries without a broker: more seconds than upkeep lets pass, whose turn it is then."""
_HUNGRY = 3
"""Looks in a row that find a place free: between two shards it is free for a moment."""

logger = logging.getLogger(__name__)


class Idleness:
    """How long this process has had no shard to run. Any thread may enter and leave ``busy``."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._running = 0
        self._since = now()

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._since = self._now()

    @property
    def running(self) -> int:
        """Shards that run now."""
        with self._lock:
            return self._running

    @property
    def seconds(self) -> float:
        """0 while anything runs."""
        with self._lock:
            return 0.0 if self._running else self._now() - self._since


class IdleWatch:
    """Called every second or so: puts the engine to sleep, asks the worker to end. Times in seconds, None: never."""

    def __init__(
        self, idleness: Idleness, lane: Lane, *, sleep: float | None, leave: float | None, end: Callable[[], None]
    ) -> None:
        self._idleness = idleness
        self._lane = lane
        self._sleep = sleep
        self._leave = leave
        self._end = end

    def look(self) -> None:
        idle = self._idleness.seconds
        if self._leave is not None and idle >= self._leave:
            logger.info("no work for %.0f s: the worker ends", idle)
            self._end()
        elif self._sleep is not None and idle >= self._sleep and not self._lane.engine.asleep:
            self._lane.sleep()  # again, too, where it died in its sleep and was started awake


class Hunger:
    """Called every second or so: a worker that has had a place free for a while asks for shards that wait elsewhere.

    A message is acknowledged when its shard begins, so a busy worker holds as many again as it runs; without this they
    would wait for it while another has nothing to do. Whoever begins first has the shard, the other message is a no-op.
    """

    def __init__(self, idleness: Idleness, *, places: int, ask: Callable[[], bool]) -> None:
        self._idleness = idleness
        self._places = places
        self._ask = ask
        self._free = 0
        self._wait = _HUNGRY

    def look(self) -> None:
        """A broker that does not answer is asked ever more rarely: what was to be sent counts as sent at each try."""
        self._free = self._free + 1 if self._idleness.running < self._places else 0
        if self._free >= self._wait:
            self._free = 0
            self._wait = _HUNGRY if self._ask() else min(8 * self._wait, _SELDOM)
