"""Whether a child server gets on with what it was asked: one whose GPU hangs may still call itself well.

Replies tell, and where there are none for minutes, because answers are long, the token counters that servers show to
Prometheus. Knows no process and no clock: ``child_server`` asks with every poll and ends what makes no progress.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from synthgen.errors import PermanentError

_SAMPLE: Final = re.compile(r"^[\w:]*(?:token|decode)[\w:]*(?:\{.*\})? +(\S+)", re.MULTILINE)
"""Of vLLM, SGLang and TGI; llama.cpp counts tokens when an answer is whole, but its calls to decode as it goes."""


class Traffic:
    """The requests that a server has now, and how many it has answered; over all its lives."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.answered = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one request. A refusal is an answer; an error that comes instead of one is no progress."""
        self.in_flight += 1
        try:
            yield
            self.answered += 1
        except PermanentError:
            self.answered += 1
            raise
        finally:
            self.in_flight -= 1


class Progress:
    """Of one life of a server: since when nothing has come of what is in flight; limits in seconds.

    ``measured`` holds while its token counters can be read, ``unmeasured`` where only replies count.
    """

    def __init__(self, traffic: Traffic, *, measured: float, unmeasured: float) -> None:
        self._traffic = traffic
        self._measured = measured
        self._unmeasured = unmeasured
        self._since = 0.0
        self._answered = -1
        self._tokens: float | None = None

    async def stalled(self, now: float, read_tokens: Callable[[], Awaitable[float | None]]) -> str:
        """How it stalls, to complete "the server …"; empty while it does not. Tokens are read only when replies stay
        away: a busy server says much."""
        if not self._traffic.in_flight or self._traffic.answered != self._answered:
            self._moved(now)
            return ""
        tokens = await read_tokens()
        if tokens is not None and tokens != self._tokens:
            self._tokens = tokens
            self._moved(now)
            return ""
        limit = self._unmeasured if tokens is None else self._measured
        count = self._traffic.in_flight
        if now - self._since < limit or not count:
            return ""
        return f"made no progress for {limit:g} s with {count} request{'s' if count > 1 else ''} in flight"

    def _moved(self, now: float) -> None:
        self._since = now
        self._answered = self._traffic.answered


def token_count(metrics: str) -> float | None:
    """What Prometheus's text says of tokens, added up: it moves when the server does. None where it says nothing."""
    values = [float(value) for value in _SAMPLE.findall(metrics) if _is_number(value)]
    return math.fsum(values) if values else None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
