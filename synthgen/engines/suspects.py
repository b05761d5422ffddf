"""Finds the request that kills the engine: those in flight at its death are asked again in ever smaller parts.

While a part is out nothing else is in flight, so a death is the part's. A part that comes through is cleared; one that
does not is divided again, until the culprit is alone. A death from outside (a kill, a lack of memory) clears everyone.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from synthgen.engines.asking import Job

_PARTS: Final = 8
"""A dead engine takes a while to come back, so few deaths matter more than few questions: 256 suspects need three."""

_ENOUGH_DEATHS: Final = 3
"""Deaths that a request must have seen, the last one alone, before it is to blame and not chance."""


class Suspects:
    """Lives on the lane's loop. Jobs come in with ``lost``, go out with ``next``, and ``judge`` follows each lull."""

    def __init__(self) -> None:
        self._lost: list[Job] = []
        self._parts: deque[list[Job]] = deque()
        self._trial: list[Job] = []
        self._out = 0

    @property
    def any(self) -> bool:
        """Whether only suspects may be sent, or nothing at all until all are back."""
        return bool(self._lost or self._parts or self._trial or self._out)

    @property
    def sendable(self) -> int:
        """How many may be sent now."""
        if self._lost:
            return 0
        return len(self._trial) or (len(self._parts[0]) if self._parts and not self._out else 0)

    def lost(self, job: Job) -> None:
        """The engine died with this one in flight."""
        job.deaths += 1
        job.asking.waiting += 1
        self._lost.append(job)

    def next(self) -> Job | None:
        """The next of the present part; of the next part, when nothing is out any more."""
        while not self._lost:
            if self._trial:
                job = self._trial.pop()
                job.asking.waiting -= 1
                if not job.asking.stopped:
                    self._out += 1
                    return job
            elif self._parts and not self._out:
                self._trial = self._parts.popleft()
            else:
                return None
        return None

    def judge(self) -> list[Job]:
        """Nothing is in flight: divide those that were lost; those that are found guilty.

        Their parts go before all others, so that few deaths lie between one verdict and the next, however many are
        guilty: after too many that nobody explains, the engine is given up.
        """
        alone = self._out == len(self._lost) == 1
        guilty = [job for job in self._lost if alone and job.deaths >= _ENOUGH_DEATHS]
        if self._lost:
            self._divide([job for job in self._lost + self._trial if job not in guilty])
            self._trial = []
        self._lost, self._out = [], 0
        for job in guilty:
            job.asking.waiting -= 1
        return guilty

    def _divide(self, jobs: list[Job]) -> None:
        size = max(1, -(-len(jobs) // _PARTS))
        self._parts.extendleft(jobs[start : start + size] for start in reversed(range(0, len(jobs), size)))
