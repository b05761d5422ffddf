"""An engine that does as a test says, a lane over it on a clock that leaps, and what tests ask of both."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

from synthgen.engines.base import Unmanaged
from synthgen.engines.lane import Asking, Lane
from synthgen.request import CHAT, Request
from synthgen.response import Reply, Response
from synthgen.retry import RetryPolicy
from tests.fakes.leaping_loop import LeapingLoop

PATIENCE = 20.0
"""Real seconds after which a test gives up."""


def request(number: int, *, name: str = "r") -> Request:
    return Request(number, f"{name}{number}", CHAT, {"model": "m", "messages": []}, b"k" * 32, deterministic=False)


def requests(count: int, *, name: str = "r") -> list[Request]:
    return [request(number, name=name) for number in range(1, count + 1)]


Answer = Callable[[Request, int], Awaitable[Reply] | Reply | Exception]


class ScriptedEngine(Unmanaged):
    """``answer(request, try)`` gives a Reply, an exception to raise, or something to await for the reply."""

    name = "scripted"
    provider = "script"
    in_flight = 4

    def __init__(self, answer: Answer = lambda request, number: Reply(b"{}")) -> None:
        self.answer = answer
        self.asked: list[tuple[str, float]] = []
        self.tries: Counter[str] = Counter()
        self.most = 0
        self.closed = 0
        self.broken: Exception | None = None
        self._now = 0

    async def start(self) -> None:
        if self.broken:
            raise self.broken

    async def health(self) -> None:
        if self.broken:
            raise self.broken

    async def close(self) -> None:
        self.closed += 1

    async def generate(self, request: Request) -> Reply:
        self.asked.append((request.custom_id, asyncio.get_running_loop().time()))
        self.tries[request.custom_id] += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            answer = self.answer(request, self.tries[request.custom_id])
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, Reply) else await answer
        finally:
            self._now -= 1

    def times(self, custom_id: str) -> list[float]:
        """When the request was sent, in seconds since the first request of all."""
        return [time - self.asked[0][1] for who, time in self.asked if who == custom_id]


async def after(seconds: float) -> Reply:
    await asyncio.sleep(seconds)
    return Reply(b"{}")


async def failing(seconds: float, error: Exception) -> Reply:
    await asyncio.sleep(seconds)
    raise error


async def once(happened: Callable[[], bool], then: float = 0.0) -> Reply:
    """Turns without letting the clock leap until the test's thread has done its part."""
    while not happened():  # noqa: ASYNC110  the event is on another thread, and waiting would let the clock leap
        await asyncio.sleep(0)
    return await after(then)


class Gate:
    """Holds replies back until the test opens it, and tells the test when one waits."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def reply(self) -> Reply:
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._opened.wait()
        return Reply(b"{}")

    def wait_for_somebody(self) -> None:
        assert self.reached.wait(PATIENCE)

    def open(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)


class Lanes:
    def __init__(self) -> None:
        self._made: list[Lane] = []

    def __call__(self, engine: ScriptedEngine, *, in_flight: int | None = None, **policy: float) -> Lane:
        lane = Lane(
            engine,
            policy=RetryPolicy(**policy),  # type: ignore[arg-type]  # attempts is an int where a test sets it
            in_flight=in_flight,
            make_loop=LeapingLoop,
            rng=lambda: 1.0,
        )
        self._made.append(lane)
        lane.start()
        return lane

    def close(self) -> None:
        for lane in self._made:
            lane.close()


def all_of(asking: Asking) -> dict[str, Response]:
    """Everything that the asking will ever give, by custom_id; nothing may come twice."""
    found: list[Response] = []
    finished = False
    while not finished:
        assert asking.wait(PATIENCE), "the asking hangs"
        finished = asking.finished
        found += asking.take()
    by_id = {response.custom_id: response for response in found}
    assert len(by_id) == len(found)
    return by_id
