"""What a worker does when there is no work: its engine sleeps after a while, the worker ends after a longer one.

With every worker of a pool gone the queue keeps the work; whatever watches the queue's length may start one again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from synthgen.engines.lane import Lane

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
        self._sleeping = False

    def look(self) -> None:
        idle = self._idleness.seconds
        if self._leave is not None and idle >= self._leave:
            logger.info("no work for %.0f s: the worker ends", idle)
            self._end()
        elif self._sleep is not None and idle >= self._sleep:
            if not self._sleeping:
                self._sleeping = True
                self._lane.sleep()
        else:
            self._sleeping = False
