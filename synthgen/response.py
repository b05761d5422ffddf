"""The outcome of one request: a success or a failure, and the line it becomes in the results.

The shape is OpenAI's Batch output line plus one object ``synthgen`` of our own. A provider's body travels as the bytes
it came in; it is never parsed and written again on the hot path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

CANCELLED: Final = "batch_cancelled"
EXPIRED: Final = "batch_expired"
TIMED_OUT: Final = "request_timeout"

NEVER_RAN: Final = {
    CANCELLED: "Not executed: the batch was cancelled.",
    EXPIRED: "Not executed before the completion window ended.",
}
"""Error codes of requests that were never asked, with their messages."""

_MOST_TOKENS: Final = 2**31 - 1
"""More than any call uses; the stores keep no larger number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an engine gives for one call that succeeded: the provider's JSON on one line, and what it cost.

    ``cost`` is in US dollars, None where unknown. Times to the first token and from token to token (mean) are in
    milliseconds, None unless measured.
    """

    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    status_code: int = 200
    request_id: str | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """The outcome of one request. ``error_code`` is None for a success, and for nothing else.

    ``body`` is the provider's JSON, kept for refusals too; ``status_code`` is None when there was no reply.
    ``cost`` is money paid now; for a cached response it is what was saved. Times to the first token and from token to
    token (mean) are in milliseconds, None unless measured for this very batch.
    """

    line: int
    custom_id: str
    body: bytes | None
    status_code: int | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    cached: bool = False
    attempts: int = 1
    latency_ms: int = 0
    engine: str = ""
    """Which software with which weights, as ``engine_label`` writes it."""
    model: str = ""
    request_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None

    @property
    def succeeded(self) -> bool:
        return self.error_code is None


def engine_label(name: str, version: str | None, revision: str | None) -> str:
    """Who answers, in one short text: ``vllm/0.12.0@<commit of the weights>``, less what is not known."""
    return name + (f"/{version}" if version else "") + (f"@{revision}" if revision else "")


@lru_cache(maxsize=64)
def _of_label(label: str) -> tuple[str, str | None, str | None]:
    """Name, version and revision; a few labels stand in millions of lines."""
    made_by, _, revision = label.partition("@")
    name, _, version = made_by.partition("/")
    return name, version or None, revision or None


def usage_of(body: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens of a reply's body in any of the endpoints' words; 0 where it gives no number.

    Servers send all sorts of things here, and an answer that is paid for must not be lost for what it says of its size.
    """
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt = _count(usage.get("prompt_tokens")) or _count(usage.get("input_tokens"))
    completion = _count(usage.get("completion_tokens")) or _count(usage.get("output_tokens"))
    return prompt, completion


def _count(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def never_ran(line: int, custom_id: str, code: str) -> Response:
    """The failure of a request that was not asked because its batch ended; ``code`` is one of ``NEVER_RAN``."""
    return Response(line, custom_id, None, None, attempts=0, error_code=code, error_message=NEVER_RAN[code])


def output_line(batch_id: str, response: Response, parameters: Mapping[str, Any] | None = None) -> bytes:
    """The response as one line of the results, with its newline; ``parameters`` are those of its request.

    A refusal by the provider keeps its HTTP status and body and has ``error: null``, as OpenAI does it; without a
    reply ``response`` is null and ``error`` says why.
    """
    engine, engine_version, revision = _of_label(response.engine)
    line: dict[str, Any] = {
        "id": f"batch_req_{batch_id.removeprefix('batch_')}_{response.line}",
        "custom_id": response.custom_id,
        "response": None,
        "error": None,
        "synthgen": {
            "line": response.line,
            "cached": response.cached,
            "attempts": response.attempts,
            "latency_ms": response.latency_ms,
            "cost": response.cost,
            "engine": engine,
            "engine_version": engine_version,
            "model": response.model,
            "revision": revision,
        },
    }
    if parameters is not None:  # written by itself: a body may be nested as deeply as can be written at all
        line["synthgen"]["parameters"] = orjson.Fragment(orjson.dumps(parameters))
    if response.ttft_ms is not None:
        line["synthgen"]["ttft_ms"] = response.ttft_ms
    if response.itl_ms is not None:
        line["synthgen"]["itl_ms"] = response.itl_ms
    if response.error_code is not None:
        line["synthgen"] |= {"error_code": response.error_code, "error_message": response.error_message}
    if response.body is not None and response.status_code is not None:
        line["response"] = {
            "status_code": response.status_code,
            "request_id": response.request_id or "",
            "body": orjson.Fragment(response.body),
        }
    if line["response"] is None or (response.error_code is not None and 200 <= (response.status_code or 0) < 300):
        line["error"] = {"code": response.error_code, "message": response.error_message}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def read_output_line(line: bytes) -> Response:
    """The response that ``output_line`` wrote. The body is written anew, its meaning unchanged."""
    value = orjson.loads(line)
    ours, reply, error = value["synthgen"], value["response"] or {}, value["error"] or {}
    status = reply.get("status_code")
    refused = status is not None and not 200 <= status < 300
    prompt_tokens, completion_tokens = (0, 0) if refused or not reply else usage_of(reply["body"])
    return Response(
        line=ours["line"],
        custom_id=value["custom_id"],
        body=orjson.dumps(reply["body"]) if reply else None,
        status_code=status,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=ours["cost"],
        cached=ours["cached"],
        attempts=ours["attempts"],
        latency_ms=ours["latency_ms"],
        engine=engine_label(ours["engine"], ours.get("engine_version"), ours.get("revision")),
        model=ours["model"],
        request_id=reply.get("request_id") or None,
        error_code=ours.get("error_code") or error.get("code"),
        error_message=ours.get("error_message") or error.get("message"),
        ttft_ms=ours.get("ttft_ms"),
        itl_ms=ours.get("itl_ms"),
    )
