"""Keeps the leases of this process's attempts alive and hears what their batches want of them.

One thread and one statement per beat for all attempts of a worker, however many shards it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from synthgen.batch import Attempt, Counts, Directive
from synthgen.errors import ServiceUnavailable
from synthgen.ports import BatchStore, Beat, Limits

logger = logging.getLogger(__name__)


class Held:
    """A running attempt: the runner updates ``counts``, the keeper ``directive``; each reads the other's."""

    __slots__ = ("attempt", "counts", "directive")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.counts = Counts()
        self.directive = attempt.directive


class Keeper:
    """Start it once per process; ``keep`` a claim for as long as it runs."""

    def __init__(self, store: BatchStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="synthgen-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def keep(self, attempt: Attempt) -> Iterator[Held]:
        held = Held(attempt)
        with self._lock:
            self._held[attempt.token] = held
        try:
            yield held
        finally:
            with self._lock:
                del self._held[attempt.token]

    def beat(self) -> None:
        """One round: extend all leases, take over what the batches want."""
        with self._lock:
            present = dict(self._held)
        if not present:
            return
        beats = [Beat(token, held.counts) for token, held in present.items()]
        wanted = self._store.heartbeat(beats, lease=self._limits.lease)
        for token, held in present.items():
            directive = wanted.get(token, Directive.LOST)
            if directive is not held.directive and token in self._held:  # not one that was sealed meanwhile
                logger.info("directive: shard=%s/%d %s", held.attempt.batch.id, held.attempt.shard.number, directive)
            held.directive = directive

    def _run(self) -> None:
        while not self._stop.wait(self._limits.heartbeat):
            try:
                self.beat()
            except ServiceUnavailable as error:
                logger.warning("no heartbeat: %s", error)
            except Exception:
                logger.exception("heartbeat failed")
