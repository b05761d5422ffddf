"""A small real OpenAI-compatible HTTP server that does as it is told and counts what it is asked.

In a test: ``with StubLLM(latency=0.02) as stub: ... stub.url, stub.counts()``. As a process: ``python -m tests.stub_llm
--port 0 --latency 0.02`` prints its URL as the first line of standard output.

A prompt may script its own fate with a marker ``[[stub NAME=VALUE ...]]``: ``status=500,429,200`` (one for each time it
is asked, the last one for ever after; ``drop`` closes the connection, ``broken`` sends no JSON, ``truncate`` sends half
a reply, ``empty`` sends nothing, ``hollow`` an object that answers nothing, ``error`` an error inside a 200, ``abort``
a 200 cut off as vLLM does when it is ended), ``code=NAME`` (the error's code), ``retry_after=1``
(header of every refusal), ``latency=0.5``, ``pretty=1`` (JSON over several lines), ``gap=0.01`` (between the events of
a stream).

``GET /counts``: ``{"requests": n, "answered": n, "asked": {prompt: n}, "most_at_once": n}``; ``GET /answers``:
``{prompt: [Unix times of its 200s]}``; ``POST /reset`` forgets.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

PATHS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
}
_MARKER = re.compile(r"\[\[stub ([^\]]*)\]\]")
_FATES = ("drop", "broken", "truncate", "empty", "hollow", "error", "abort")


def answer_to(prompt: str) -> str:
    """The text that the stub gives for a prompt, so that a test can tell that each line got its own."""
    return f"answer {hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


class StubLLM:
    def __init__(
        self,
        *,
        port: int = 0,
        latency: float = 0.0,
        fail_rate: float = 0.0,
        fail_status: int = 500,
        key: str | None = None,
        models: tuple[str, ...] = (),
    ) -> None:
        self.latency = latency
        self.fail_rate = fail_rate
        self.fail_status = fail_status
        self.key = key
        self.models = models
        """Any other model is a 404; empty accepts all."""
        self.port = port
        self.headers: list[dict[str, str]] = []
        """Of the last requests, newest last."""
        self.bodies: list[dict[str, Any]] = []
        self.reset()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub", daemon=True)
        self._runner: web.AppRunner | None = None

    # ---- for tests

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[str, Any]:
        return {
            "requests": sum(self.asked.values()),
            "answered": sum(len(times) for times in self.answers.values()),
            "asked": dict(self.asked),
            "most_at_once": self.most_at_once,
        }

    def reset(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, list[float]] = defaultdict(list)
        self.most_at_once = 0
        self._at_once = 0
        self.headers.clear()
        self.bodies.clear()

    # ---- the server

    async def start(self) -> None:
        app = web.Application(client_max_size=64_000_000)
        self.add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def add_routes(self, app: web.Application) -> None:
        for path in PATHS:
            app.router.add_post(path, self._serve)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/counts", self._give_counts)
        app.router.add_get("/answers", self._give_answers)
        app.router.add_post("/reset", self._forget)

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # replies that nobody waits for any more
            task.cancel()
        await asyncio.sleep(0)

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._unauthorized(request):
            return refusal
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _give_counts(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.counts())

    async def _give_answers(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.answers)

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        self.reset()
        return web.json_response({})

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        if self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return _refusal(401, code="invalid_api_key", message="Incorrect API key provided.")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(request)
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.headers = [*self.headers[-9:], dict(request.headers)]
        self.bodies = [*self.bodies[-9:], body]
        prompt = prompt_of(request.path, body)
        self.asked[prompt] += 1
        if refusal := self._unauthorized(request):
            return refusal
        if self.models and body.get("model") not in self.models:
            return _refusal(404, code="model_not_found", message=f"The model {body.get('model')!r} does not exist.")
        script = _script(prompt)
        await asyncio.sleep(float(script.get("latency", self.latency)))
        fate = self._fate(script, prompt)
        if fate != "200" and fate not in _FATES:
            return _refusal(int(fate), code=script.get("code"), retry_after=script.get("retry_after"))
        return await self._play(fate, request, script, prompt, body)

    async def _play(
        self, fate: str, request: web.Request, script: dict[str, str], prompt: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        assert request.transport is not None
        if fate == "drop":
            request.transport.close()
            return web.Response()
        if body.get("stream") and fate in ("200", "truncate", "error", "abort"):
            return await self._stream(fate, request, prompt, body)
        content = orjson.dumps(
            {"error": {"message": "Upstream failed.", "code": int(script.get("code", 502))}}
            if fate == "error"
            else _ended(fate, reply_to(request.path, body, prompt)),
            option=orjson.OPT_INDENT_2 if script.get("pretty") else None,
        )
        if fate == "truncate":
            reply = web.StreamResponse(headers={"Content-Length": str(len(content))})
            await reply.prepare(request)
            await reply.write(content[: len(content) // 2])
            request.transport.close()
            return reply
        content = {"broken": b"<html>busy</html>", "empty": b"", "hollow": b'{"detail":"busy"}'}.get(fate, content)
        if fate == "200":
            self.answers[prompt].append(time.time())
        headers = {"x-request-id": f"req_{sum(self.asked.values())}"}
        return web.Response(body=content, content_type="application/json", headers=headers)

    async def _stream(self, fate: str, request: web.Request, prompt: str, body: dict[str, Any]) -> web.StreamResponse:
        """The same reply as server-sent events, word by word with ``gap`` seconds between them."""
        headers = {"x-request-id": f"req_{sum(self.asked.values())}", "Content-Type": "text/event-stream"}
        reply = web.StreamResponse(headers=headers)
        await reply.prepare(request)
        events = chunks_of(_ended(fate, reply_to(request.path, body, prompt)))
        if fate == "truncate":
            events = events[:2]
        if fate == "error":
            events = [events[0], {"error": {"message": "Upstream failed.", "code": 502}}]
        gap = float(_script(prompt).get("gap", 0))
        for event in events:
            await reply.write(b"data: " + orjson.dumps(event) + b"\n\n")
            await asyncio.sleep(gap)
        if fate != "truncate":
            await reply.write(b"data: [DONE]\n\n")
        if fate == "200":
            self.answers[prompt].append(time.time())
        return reply

    def _fate(self, script: dict[str, str], prompt: str) -> str:
        number = self.asked[prompt]
        if "status" in script:
            fates = script["status"].split(",")
            return fates[min(number, len(fates)) - 1]
        draw = hashlib.sha256(f"{prompt} {number}".encode()).digest()
        return str(self.fail_status) if int.from_bytes(draw[:4], "big") < self.fail_rate * 2**32 else "200"


def prompt_of(path: str, body: dict[str, Any]) -> str:
    """What the counts are kept by: the last message's text, or the prompt or input as it is."""
    value = body[PATHS[path]]
    if path == "/v1/chat/completions":
        value = value[-1]["content"]
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def reply_to(path: str, body: dict[str, Any], prompt: str) -> dict[str, Any]:
    text, model = answer_to(prompt), body.get("model", "stub")
    asked, said = len(prompt) // 4 + 1, 2
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    if path == "/v1/embeddings":
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": [0.6, 0.8]} for i, _ in enumerate(inputs)]
        usage = {"prompt_tokens": asked, "total_tokens": asked}
        return {"object": "list", "data": data, "model": model, "usage": usage}
    if path == "/v1/responses":
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}]
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "error": None,
            "model": model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said},
        }
    chat = path == "/v1/chat/completions"
    said_by = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    choices = [{"index": 0, "finish_reason": "stop", **said_by}]
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": model, "choices": choices, "usage": usage}


def chunks_of(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """What a server streams instead of ``reply``: the role, each choice's words one by one, its end, then the usage."""
    common = {name: value for name, value in reply.items() if name not in ("choices", "usage")}
    chat = reply["object"] == "chat.completion"
    if chat:
        common["object"] = "chat.completion.chunk"
    events: list[dict[str, Any]] = []
    for choice in reply["choices"]:
        index = choice["index"]
        words = re.findall(r"\S+\s*", choice["message"]["content"] if chat else choice["text"])
        said: list[dict[str, Any]] = [{"delta": {"content": word}} if chat else {"text": word} for word in words]
        if chat:
            said.insert(0, {"delta": {"role": "assistant", "content": ""}})
        last = {"delta": {}} if chat else {"text": ""}
        events += [{**common, "choices": [{"index": index, "finish_reason": None, **piece}]} for piece in said]
        events.append({**common, "choices": [{"index": index, "finish_reason": choice["finish_reason"], **last}]})
    return [*events, {**common, "choices": [], "usage": reply["usage"]}]


def _ended(fate: str, reply: dict[str, Any]) -> dict[str, Any]:
    """The reply, or what vLLM makes of it when it is ended in the middle."""
    if fate == "abort":
        for choice in reply["choices"]:
            choice["finish_reason"] = "abort"
    return reply


def _script(prompt: str) -> dict[str, str]:
    found = _MARKER.search(prompt)
    return dict(word.split("=", 1) for word in found[1].split()) if found else {}


def _refusal(
    status: int, *, code: str | None = None, message: str | None = None, retry_after: str | None = None
) -> web.Response:
    error = {"message": message or f"The stub refuses with {status}.", "type": "stub_error", "code": code}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return web.json_response({"error": error}, status=status, headers=headers)


async def _run(stub: StubLLM) -> None:
    await stub.start()
    print(stub.url, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--fail-rate", type=float, default=0.0)
    parser.add_argument("--fail-status", type=int, default=500)
    parser.add_argument("--key")
    parser.add_argument("--model", action="append", default=[])
    given = parser.parse_args()
    stub = StubLLM(
        port=given.port,
        latency=given.latency,
        fail_rate=given.fail_rate,
        fail_status=given.fail_status,
        key=given.key,
        models=tuple(given.model),
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(stub))


if __name__ == "__main__":
    main()
