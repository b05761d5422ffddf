"""One shard's questions to a lane: what the shard's thread holds, and the lane's book-keeping for it.

The thread reads and asks to stop; all else happens on the lane's event loop, so nothing in here needs a lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence

from synthgen.errors import FatalError
from synthgen.request import Request
from synthgen.response import Response


class Job:
    """One request on its way through the lane. Made in the shard's thread, changed only on the loop."""

    __slots__ = ("asking", "deadline", "deaths", "failures", "replies", "request", "successes", "tries", "unreached")

    def __init__(self, request: Request, asking: Asking) -> None:
        self.request = request
        self.asking = asking
        self.tries = 0
        self.failures = 0
        """Tries that used up an attempt."""
        self.deaths = 0
        """Deaths of the engine while this was in flight."""
        self.unreached = 0
        self.deadline: float | None = None
        """Set when it is sent, anew after a death of the engine."""
        self.replies = 0
        """The lane's count of replies when this was last sent."""
        self.successes = 0
        """The lane's count of successes when this was first sent."""


class Asking:
    """The handle of one ``Lane.ask``: ``take`` what is finished, ``wait`` for more, ``stop`` early.

    When ``finished`` is True everything that will ever come has come: read it before the last ``take``. After ``stop``
    or a fatal error the requests without a response were not answered, and may be asked again later.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        on_stop: Callable[[Asking], None],
        on_abandon: Callable[[Asking], None],
    ) -> None:
        self.size = len(requests)
        self.outstanding = 0
        """Requests in flight now."""
        self.finished = False
        self.fatal: FatalError | None = None
        """Why the engine can serve nobody; the requests in flight may still finish."""
        # For the lane, on its loop:
        self.pending = deque(Job(request, self) for request in requests)
        self.waiting = 0
        self.stopped = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._on_stop = on_stop
        self._on_abandon = on_abandon
        self._answers: deque[Response] = deque()
        self._over = threading.Event()

    # ---- for the shard's thread

    def take(self) -> list[Response]:
        """The responses finished since the last take, in the order in which they finished."""
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def wait(self, timeout: float | None = None) -> bool:
        """True when all is finished or broken, False after ``timeout`` seconds; never woken for single answers.

        After ``stop`` it waits for what is still in flight, broken or not.
        """
        return self.finished or self._over.wait(timeout)

    def stop(self) -> None:
        """Send no more: drop what was not sent and what waits to be sent again; what is in flight may finish."""
        self._on_stop(self)

    def abandon(self) -> None:
        """``stop``, and cancel what is in flight as well."""
        self._on_abandon(self)

    # ---- for the lane, on its loop

    def deliver(self, response: Response) -> None:
        self._answers.append(response)

    def halt(self, fatal: FatalError | None = None) -> None:
        """Nothing more is sent; ``fatal`` says why if the engine is to blame."""
        if fatal is None:
            self._over.clear()  # whoever stops knows of a fatal error already, and now waits for the rest
        elif not self.stopped:
            self.fatal = fatal
            self._over.set()
        self.stopped = True
        self.pending.clear()

    def settle(self) -> bool:
        """Note whether all is finished; True if so."""
        if self.outstanding == 0 and (self.stopped or not (self.pending or self.waiting)):
            self.finished = True
            self._over.set()
        return self.finished
