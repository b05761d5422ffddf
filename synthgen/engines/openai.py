"""Any OpenAI-compatible URL over one lean HTTP client. The hot path: request bytes are written once, reply bytes kept.

Retries, limits and time between tries are the lane's; what a refusal means is ``refusals``'.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeGuard
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from synthgen.engines.base import EngineSpec, Unmanaged
from synthgen.engines.refusals import Refusal, classify, status_within
from synthgen.engines.streaming import BrokenStream, StreamedError, StreamedReply, as_streaming, can_stream
from synthgen.errors import BadInput, EngineError, FatalError, RetryableError, Unreachable
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, INPUT_FIELD, RESPONSES, Request
from synthgen.response import TIMED_OUT, Reply, usage_of

OPENAI: Final = "https://api.openai.com/v1"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECT: Final = 15.0
"""Seconds for one connection to open."""
_HEALTH: Final = 10.0
"""Seconds for the answer to a health check."""
_IDLE: Final = 4.0
"""Seconds that a connection is kept unused: uvicorn and vLLM close theirs after five, and no request must meet that."""

_ANSWERS: Final[Mapping[str, tuple[str, str]]] = {
    CHAT: ("choices", "message"),
    COMPLETIONS: ("choices", "text"),
    EMBEDDINGS: ("data", "embedding"),
    RESPONSES: ("output", "type"),
}
"""Where a reply of each endpoint has its answers, and the field without which one is none."""


class OpenAIEngine(Unmanaged):
    """``base_url`` as the OpenAI SDK takes it, with or without ``/v1`` where it is only a host."""

    name = "openai"

    def __init__(self, spec: EngineSpec) -> None:
        if spec.options:
            raise BadInput(f"The openai engine has no option {next(iter(spec.options))!r}; it takes none.")
        base = base_url(spec.base_url or OPENAI)
        self.provider = spec.provider or provider_of(base)
        self.in_flight = spec.in_flight or 256
        self._spec = spec
        self._base = base
        self._shown = str(base.with_user(None))
        self._urls = {path: base / path.removeprefix("/v1/") for path in INPUT_FIELD}
        self._proxy = _proxy_for(base)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        if not self._spec.api_key and self._base.host == URL(OPENAI).host:
            raise FatalError(f"{self._shown} needs an API key: set SYNTHGEN_API_KEY or OPENAI_API_KEY.", code="no_key")
        headers = {"Content-Type": "application/json"}
        if self._spec.api_key:
            headers["Authorization"] = f"Bearer {self._spec.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=_IDLE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=_limit(self._spec.timeout), sock_connect=_CONNECT),
        )

    async def generate(self, request: Request) -> Reply:
        session = self._session
        assert session is not None, "start() comes first"
        if self._spec.measure_ttft and can_stream(request):
            return await self._generate_streaming(session, request)
        content = orjson.dumps(self._with_model(request.body))
        try:
            reply = await session.post(self._urls[request.url], data=content, allow_redirects=False, proxy=self._proxy)
            body = await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._transport_error(error) from error
        if reply.status != 200:
            raise self._refused(reply.status, body, request, reply.headers)
        return self._reply(body, request, reply.headers)

    async def _generate_streaming(self, session: aiohttp.ClientSession, request: Request) -> Reply:
        """The same reply in pieces, with the times of its tokens."""
        content = orjson.dumps(as_streaming(self._with_model(request.body)))
        stream = StreamedReply(request.url, sent=time.perf_counter())
        try:
            reply = await session.post(self._urls[request.url], data=content, allow_redirects=False, proxy=self._proxy)
            if reply.status != 200 or reply.content_type != "text/event-stream":
                body = await reply.read()
                if reply.status != 200:
                    raise self._refused(reply.status, body, request, reply.headers)
                return self._reply(body, request, reply.headers)  # it does not stream this, and so nothing is measured
            async with reply:  # a stream that is left early is closed, not read to its end
                async for data in reply.content.iter_any():
                    stream.feed(data, time.perf_counter())
            value = stream.body()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._transport_error(error) from error
        except BrokenStream as error:
            raise self._bad_reply(str(error)) from error
        except StreamedError as error:
            raise self._error_within(error.error, error.chunk, request, reply.headers) from error
        whole = self._counted(orjson.dumps(value), value, request, reply.headers)
        return replace(whole, ttft_ms=stream.ttft_ms(), itl_ms=stream.itl_ms(whole.completion_tokens))

    async def health(self) -> None:
        """GET /models: whoever answers lives, unless the key is wrong. Many servers know no such path."""
        session = self._session
        assert session is not None, "start() comes first"
        timeout = aiohttp.ClientTimeout(total=_HEALTH)
        try:
            reply = await session.get(self._base / "models", timeout=timeout, allow_redirects=False, proxy=self._proxy)
            body = await reply.read()
        except TimeoutError as error:
            raise Unreachable(f"{self._shown} did not answer within {_HEALTH:g} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._transport_error(error) from error
        if reply.status in (401, 403):
            raise classify(self._refusal(reply.status, body, self._spec.model, reply.headers))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)  # let the transports close before the loop does
            self._session = None

    def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if "model" in body or self._spec.model is None else {**body, "model": self._spec.model}

    def _reply(self, body: bytes, request: Request, headers: Mapping[str, str]) -> Reply:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._bad_reply("not JSON" if body else "empty") from None
        if not isinstance(value, dict):
            raise self._bad_reply("not a JSON object")
        if error := value.get("error"):
            raise self._error_within(error, body, request, headers)
        return self._counted(one_line(body, value), value, request, headers)

    def _counted(self, body: bytes, value: Mapping[str, Any], request: Request, headers: Mapping[str, str]) -> Reply:
        if fault := fault_of(value, request.url):
            raise self._bad_reply(fault)
        prompt_tokens, completion_tokens = usage_of(value)
        return Reply(
            body,
            prompt_tokens,
            completion_tokens,
            self._spec.cost(prompt_tokens, completion_tokens),
            request_id=headers.get("x-request-id"),
        )

    def _error_within(self, error: object, body: bytes, request: Request, headers: Mapping[str, str]) -> EngineError:
        """An error that comes under HTTP 200 counts as the status that it names."""
        if status := status_within(error):
            return self._refused(status, body, request, headers)
        return self._bad_reply(f"an error: {_clipped(error)}")

    def _bad_reply(self, what: str) -> RetryableError:
        return RetryableError(f"{self._shown} answered HTTP 200, but the body is {what}.", code="bad_reply")

    def _refused(self, status: int, body: bytes, request: Request, headers: Mapping[str, str]) -> EngineError:
        if status < 300:
            return RetryableError(f"{self._shown} answered HTTP {status} instead of 200.", code="bad_reply")
        return classify(self._refusal(status, body, request.body.get("model") or self._spec.model, headers))

    def _refusal(self, status: int, body: bytes, model: str | None, headers: Mapping[str, str]) -> Refusal:
        return Refusal(status, body, self._shown, model, headers, time.time())

    def _transport_error(self, error: Exception) -> EngineError:
        """No reply, or half of one."""
        match error:
            case aiohttp.ClientPayloadError():
                fault: EngineError = self._bad_reply("cut short")
            case aiohttp.ClientConnectorCertificateError():
                message = f"The certificate of {self._shown} is not trusted here ({error}): correct it or --base-url."
                fault = FatalError(message, code="bad_certificate")
            case aiohttp.ConnectionTimeoutError():
                fault = Unreachable(f"{self._shown} did not take a connection within {_CONNECT:g} s.")
            case TimeoutError():
                seconds = self._spec.timeout
                fault = RetryableError(f"{self._shown} did not reply within {seconds:g} s.", code=TIMED_OUT)
            case aiohttp.ServerDisconnectedError():
                fault = Unreachable(f"{self._shown} closed the connection without a reply.")
            case aiohttp.ClientConnectionError() | OSError():
                fault = Unreachable(f"{self._shown} cannot be reached ({error}).")
            case _:
                fault = RetryableError(f"{self._shown} sent no valid HTTP ({error}).", code="bad_reply")
        return fault


def _limit(seconds: float) -> float | None:
    """As aiohttp wants it, which cannot count to infinity."""
    return seconds if math.isfinite(seconds) else None


def base_url(text: str) -> URL:
    """The address that ``/chat/completions`` is put after: ``http://h:p`` gets ``/v1``, a given path stays as it is.

    Raises BadInput when ``text`` is no http address.
    """
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(f"Base URL {text!r} is no address: write it like http://localhost:8000/v1.")
    path = url.path.rstrip("/")
    return url.with_path(path or "/v1")


def provider_of(url: URL) -> str:
    """Host, and port where it is given: who answers, in cache keys."""
    return f"{url.host}:{url.explicit_port}" if url.explicit_port else str(url.host)


def fault_of(value: Mapping[str, Any], url: str) -> str | None:
    """Why a reply under HTTP 200 is no whole answer, to complete "the body is …"; None where it is one.

    Such a reply must be neither kept nor cached. An answer may well say nothing: beside tool calls a chat's content is
    null, and vLLM's Responses API has an empty output where nothing was generated, for which its status vouches.
    """
    if url not in _ANSWERS:
        return None
    name, told_in = _ANSWERS[url]
    parts = value.get(name)
    status = value.get("status") if url == RESPONSES else None
    if status not in (None, "completed", "incomplete"):
        return f"no finished answer, but {_clipped(status)}"
    if not _is_list_of(parts, told_in) or not (parts or status):
        return f"without {name}: {_clipped(value)}"
    if any(part.get("finish_reason") == "abort" for part in parts):  # vLLM, ended in the middle, gives half a text
        return "cut off by the server"
    return None


def _is_list_of(parts: object, field: str) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(parts, list) and all(isinstance(part, dict) and part.get(field) is not None for part in parts)


def one_line(body: bytes, value: object) -> bytes:
    """``body`` itself, unless it is spread over lines: results are lines."""
    return orjson.dumps(value) if b"\n" in body or b"\r" in body else body


def _proxy_for(base: URL) -> str | None:
    """The proxy that the user set for this address, looked up once: per request it would cost more than the request."""
    host = base.host or ""
    if host in _LOOPBACK or proxy_bypass(host):
        return None
    return getproxies().get(base.scheme)


def _clipped(error: object) -> str:
    text = orjson.dumps(error).decode()
    return text if len(text) <= 300 else text[:297] + "..."
