"""How long to wait before asking again: pure functions, no clock and no sleep in here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds on asking again; times in seconds.

    ``attempts`` bounds tries that the provider answered badly. Rate limits and an unreachable endpoint do not use
    them up: the first is bounded by ``deadline`` alone, the second ends the run after ``unreachable_after``.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 60.0
    deadline: float = 900.0
    """From the request's first try to its last."""
    unreachable_after: float = 60.0
    """An endpoint that gives nobody any reply for this long is broken, not slow."""


def backoff(policy: RetryPolicy, failures: int, *, rng: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the ``failures``-th failure (1-based): full jitter over an exponential ceiling."""
    ceiling = min(policy.cap, policy.base * 2.0 ** min(failures - 1, 30))
    return ceiling * rng()


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait according to a Retry-After header (seconds or an HTTP date); None when there is none to follow.

    ``now`` is Unix time. RFC 9110, 10.2.3. ``inf`` and ``nan`` are numbers to Python but no time to wait.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None
