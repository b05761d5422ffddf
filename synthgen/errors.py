"""Everything that synthgen raises on purpose, so that each edge can tell what to do about it.

A request that fails is data (a ``Response``), never an exception; exceptions are for shards, batches and services::

    SynthgenError
    ├── BadInput                  the user's file, option or setting is wrong
    │   ├── BadSetting            … in the environment or synthgen.toml
    │   └── InvalidLines          … in the input file, with the first rejected lines
    ├── NotFound                  no such batch, shard, request or object
    ├── InputChanged              the stored input is not what was submitted
    ├── StateConflict             it exists, but its state does not allow this
    ├── LostLease                 another attempt holds the shard now: stop and write nothing
    ├── ServiceUnavailable        database, broker or object store does not answer
    │   └── DatabaseUnavailable   … and it is the database, without which nothing can go on
    └── EngineError               one call to an engine; the lane makes a response of it, unless it is fatal
        ├── RetryableError        the same request may succeed later
        │   ├── RateLimited       429; says how long to wait
        │   ├── Unreachable       no reply at all: refused, reset, name not found
        │   └── EngineLost        the server that we supervise died with the request in flight
        ├── PermanentError        this request cannot succeed, others can
        └── FatalError            the engine cannot serve anyone: the batch pauses with this sentence
            └── EngineGone        … and that is this worker's trouble: it ends, the batch goes on elsewhere

Exit codes and HTTP statuses are chosen at the edges, one table each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final


class SynthgenError(Exception):
    """Root of all errors that synthgen raises on purpose; its text is one sentence for the user."""


class BadInput(SynthgenError):
    """What the user gave cannot be used; the message says what, where and what to do."""


class BadSetting(BadInput):
    """A setting from the environment or ``synthgen.toml`` cannot be used."""


class InvalidLines(BadInput):
    """The input has lines that cannot be run and the policy is ``fail``; nothing was stored.

    ``first`` holds at most twenty of them in line order, ``total`` counts all.
    """

    def __init__(self, first: Sequence[object], total: int) -> None:
        noun = "line" if total == 1 else "lines"
        super().__init__(
            f"{total:,} invalid {noun}; nothing was stored. Correct them, or use --on-invalid skip to run the others."
        )
        self.first = tuple(first)
        self.total = total


class NotFound(SynthgenError):
    """No such batch, shard, request or object."""


class InputChanged(SynthgenError):
    """The stored input of a batch does not hold the requests that were counted when it was submitted.

    Nobody can go on with such a batch: ``what_to_do`` ends the sentence, and the reason of the pause.
    """

    what_to_do: Final = "Cancel this batch and submit it again."


class StateConflict(SynthgenError):
    """The thing exists, but its present state does not allow the wanted change."""

    def __init__(self, what: str, present: str, wanted: str) -> None:
        super().__init__(f"Cannot make {what} {wanted}: it is {present}.")
        self.what = what
        self.present = present
        self.wanted = wanted


class LostLease(SynthgenError):
    """The attempt's token is no longer the shard's; whoever sees this stops and writes nothing."""


class ServiceUnavailable(SynthgenError):
    """The database, the broker or the object store did not answer within our patience."""


class DatabaseUnavailable(ServiceUnavailable):
    """The database did not. Of the others one object or one queue may be the trouble, and the rest be well."""


class EngineError(SynthgenError):
    """What went wrong with one call to an engine.

    ``status_code`` and ``body`` are the provider's reply, where there was one; ``code`` goes into the output line.
    """

    def __init__(self, message: str, *, code: str, status_code: int | None = None, body: bytes | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status_code = status_code
        self.body = body


class RetryableError(EngineError):
    """The same request may succeed later: 408, 5xx, time-out, broken reply."""


class RateLimited(RetryableError):
    """The provider asks for a pause (429); ``retry_after`` is in seconds, where it said so."""

    def __init__(self, message: str, *, retry_after: float | None = None, body: bytes | None = None) -> None:
        super().__init__(message, code="rate_limited", status_code=429, body=body)
        self.retry_after = retry_after


class Unreachable(RetryableError):
    """No reply: connection refused or reset, name not found."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="connection_error")


class EngineLost(RetryableError):
    """The server that this worker supervises died with the request in flight; nobody's fault until it is proved."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="engine_crashed")


class PermanentError(EngineError):
    """This request cannot succeed (400, context too long, content policy); the others can."""


class FatalError(EngineError):
    """The engine can serve nobody: wrong key, unknown model, endpoint gone. The message says what to fix."""


class EngineGone(FatalError):
    """The server that this worker supervises cannot be kept alive: the worker gives its shards back and ends."""
