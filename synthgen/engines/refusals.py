"""What a provider's refusal means for the request and for the batch: one table from HTTP status to typed error.

Pure: no network in here. Every engine that speaks HTTP in the end uses this table, so a 429 means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from synthgen.errors import EngineError, FatalError, PermanentError, RateLimited, RetryableError
from synthgen.response import TIMED_OUT
from synthgen.retry import parse_retry_after

_NO_MONEY: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
)
_POLICY: Final = frozenset(
    {"content_filter", "content_policy_violation", "moderation", "moderation_blocked", "safety", "policy_violation"}
)
_SHOWN: Final = 300
"""Characters of a provider's message that go into ours."""
_KEPT: Final = 4_000
"""Characters of a reply that is not JSON that are kept in the error line."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that is no answer. ``url`` and ``model`` are what was asked; ``headers`` are looked up in lower case."""

    status: int
    body: bytes
    url: str
    model: str | None
    headers: Mapping[str, str]
    now: float
    """Unix time, for a Retry-After that is a date."""
    keys: str = "SYNTHGEN_API_KEY or OPENAI_API_KEY"
    """Where the key comes from, for sentences that say what to fix."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A refusal with its body read: the provider's words and the JSON that is kept."""

    refusal: Refusal
    message: str
    codes: tuple[str, ...]
    body: bytes

    @property
    def code(self) -> str:
        return self.codes[0] if self.codes else f"http_{self.refusal.status}"

    @property
    def saying(self) -> str:
        """For the middle of a sentence."""
        return f" ({self.message.rstrip('.')})" if self.message else ""


def classify(refusal: Refusal) -> EngineError:
    """The typed error for a reply that is no answer.

    408, 409, 424, 425 and 5xx may be asked again; 429 asks for a pause; 401, 402, 403, 404, a redirect and an empty
    purse concern everybody; any other 4xx concerns this request alone, and so does a 403 by a content policy.
    """
    status = refusal.status
    read = _read(refusal)
    kind = _BY_STATUS.get(status) or _BY_CLASS.get(status // 100, _retryable)
    return kind(read)


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that a reply's headers ask to wait: ``retry-after-ms`` is finer, so it goes first."""
    milliseconds = parse_retry_after(headers.get("retry-after-ms"), now=now)
    if milliseconds is not None:
        return milliseconds / 1000.0
    return parse_retry_after(headers.get("retry-after"), now=now)


def status_within(error: object) -> int | None:
    """The HTTP status that an ``error`` object inside a 200 carries as its code, as gateways do it."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else None


def _retryable(read: _Read) -> EngineError:
    status = read.refusal.status
    message = f"The provider answered HTTP {status}{read.saying}."
    return RetryableError(message, code=read.code, status_code=status, body=read.body)


def _timed_out(read: _Read) -> EngineError:
    message = f"The provider gave up waiting: HTTP 408{read.saying}."
    return RetryableError(message, code=TIMED_OUT, status_code=408, body=read.body)


def _permanent(read: _Read) -> EngineError:
    status = read.refusal.status
    message = read.message or f"The provider refused the request with HTTP {status}."
    return PermanentError(message, code=read.code, status_code=status, body=read.body)


def _rate_limited(read: _Read) -> EngineError:
    if _NO_MONEY.intersection(read.codes):
        return _no_money(read)
    wait = retry_after(read.refusal.headers, now=read.refusal.now)
    return RateLimited(f"The provider limits the rate: HTTP 429{read.saying}.", retry_after=wait, body=read.body)


def _no_money(read: _Read) -> EngineError:
    return _fatal(
        read,
        f"The account behind {read.refusal.url} has no quota or credit left{read.saying}: "
        "check its billing, or use another key.",
    )


def _bad_key(read: _Read) -> EngineError:
    return _fatal(
        read,
        f"{read.refusal.url} does not accept the API key{read.saying}: set {read.refusal.keys} "
        "to a key that is valid there.",
    )


def _forbidden(read: _Read) -> EngineError:
    if _POLICY.intersection(read.codes):
        return _permanent(read)
    return _fatal(
        read,
        f"{read.refusal.url} does not let this API key use model {read.refusal.model!r}{read.saying}: "
        f"give the key access, or set {read.refusal.keys} to one that has it.",
    )


def _not_found(read: _Read) -> EngineError:
    return _fatal(
        read,
        f"{read.refusal.url} does not know this path or model {read.refusal.model!r}{read.saying}: "
        "check --base-url and --model.",
    )


def _redirected(read: _Read) -> EngineError:
    target = read.refusal.headers.get("location", "another place")
    return _fatal(read, f"{read.refusal.url} redirects to {target}: give the final address as --base-url.")


def _fatal(read: _Read, message: str) -> FatalError:
    return FatalError(message, code=read.code, status_code=read.refusal.status, body=read.body)


_BY_STATUS: Final[Mapping[int, Callable[[_Read], EngineError]]] = {
    401: _bad_key,
    402: _no_money,
    403: _forbidden,
    404: _not_found,
    408: _timed_out,
    409: _retryable,
    424: _retryable,  # TGI, when a shard of its own died or ran out of memory
    425: _retryable,
    429: _rate_limited,
}
_BY_CLASS: Final[Mapping[int, Callable[[_Read], EngineError]]] = {3: _redirected, 4: _permanent, 5: _retryable}


def _read(refusal: Refusal) -> _Read:
    try:
        value = orjson.loads(refusal.body)
    except orjson.JSONDecodeError:
        text = refusal.body.decode(errors="replace").strip()
        return _Read(refusal, _short(text), (), orjson.dumps({"error": {"message": text[:_KEPT]}}))
    message, codes = _words(value)
    # An empty or bare value would say nothing in an error line; JSON is compacted so that it stays one line.
    return _Read(refusal, _short(message), codes, orjson.dumps(value))


def _words(value: Any) -> tuple[str, tuple[str, ...]]:
    """Message and codes, most telling first, from ``{"error": {…}}``, ``{"error": "…"}`` or the bare object."""
    if not isinstance(value, dict):
        return str(value), ()
    error = value.get("error") or value
    if not isinstance(error, dict):
        return str(error), ()
    message = error.get("message") or error.get("detail") or ""
    found = (error.get("code"), error.get("type"))
    return str(message), tuple(code for code in found if isinstance(code, str) and code)


def _short(text: str) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
