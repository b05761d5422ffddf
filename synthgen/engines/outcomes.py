"""What the lane makes of a request's last try: its response, or the sentence with which the batch pauses. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from synthgen.engines.asking import Job
from synthgen.errors import EngineError, FatalError, RateLimited
from synthgen.response import Reply, Response


def closed_for_long(error: RateLimited, *, deadline: float, now: datetime) -> FatalError:
    """A pause longer than the ``deadline`` of a request, in seconds: to wait would fail what is asked, row by row."""
    until = now + timedelta(seconds=min(error.retry_after or 0.0, timedelta(days=365).total_seconds()))
    message = f"{error.message.rstrip('.')}, and it asks for a pause until {until:%Y-%m-%d %H:%M} UTC, longer than the"
    message = f"{message} {deadline:g} s that one request may take (request_deadline): resume the batch then."
    return FatalError(message, code=error.code, body=error.body)


def success(job: Job, reply: Reply, latency_ms: int, engine: str) -> Response:
    """``latency_ms`` is that of the last try, ``engine`` the label of what made the reply."""
    request = job.request
    return Response(
        request.line,
        request.custom_id,
        reply.body,
        reply.status_code,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cost=reply.cost,
        attempts=job.tries,
        latency_ms=latency_ms,
        engine=engine,
        model=request.body.get("model", ""),
        request_id=reply.request_id,
        ttft_ms=reply.ttft_ms,
        itl_ms=reply.itl_ms,
    )


def failure(job: Job, error: EngineError, latency_ms: int, engine: str) -> Response:
    """As ``success``; what the provider said of it is in ``error``."""
    request = job.request
    return Response(
        request.line,
        request.custom_id,
        error.body,
        error.status_code,
        attempts=job.tries,
        latency_ms=latency_ms,
        engine=engine,
        model=request.body.get("model", ""),
        error_code=error.code,
        error_message=error.message,
    )
