"""The worker registry as a dictionary."""

from __future__ import annotations

import threading
from dataclasses import replace

from synthgen.ports import Clock
from synthgen.workers import FAILED_SHOWN, WorkerState, WorkerStatus


class FakeWorkerRegistry:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._workers: dict[str, WorkerStatus] = {}

    def beat(self, status: WorkerStatus) -> None:
        now = self._clock.now()
        with self._lock:
            known = self._workers.get(status.id)
            started_at = now if known is None else known.started_at
            self._workers[status.id] = replace(status, started_at=started_at, beat_at=now)

    def leave(self, worker_id: str) -> None:
        with self._lock:
            self._workers.pop(worker_id, None)

    def workers(self, *, silent_for: float) -> list[WorkerStatus]:
        with self._lock:
            self._workers = {w.id: w for w in self._workers.values() if self._age(w) <= max(silent_for, FAILED_SHOWN)}
            shown = [w for w in self._workers.values() if self._age(w) <= self._patience(w, silent_for)]
        return sorted(shown, key=lambda w: (w.pool, w.started_at, w.id))

    def _age(self, worker: WorkerStatus) -> float:
        return (self._clock.now() - worker.beat_at).total_seconds()

    def _patience(self, worker: WorkerStatus, silent_for: float) -> float:
        return max(silent_for, FAILED_SHOWN) if worker.state is WorkerState.FAILED else silent_for
