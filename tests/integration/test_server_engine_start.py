"""What a server of our own says of itself when it is ready, and all that it may say instead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from synthgen.engines.base import EngineSpec
from synthgen.engines.child_server import ChildServer
from synthgen.engines.server import ServerEngine
from synthgen.engines.vllm import VllmEngine
from synthgen.errors import FatalError

NOTHING_OF_MODELS = [
    b"{}",
    b'{"data": null}',
    b'{"data": []}',
    b'{"data": {"id": "big"}}',
    b'{"data": [{"name": "big"}, "big", {"id": null}, {"id": ""}]}',
    b"[]",
    b"null",
    b"<html>hello</html>",
    b"\xff",
    b"",
]


async def _already() -> None:
    """Stands in for a child's start: the test's own server is there."""


async def started(engine: ServerEngine, monkeypatch: pytest.MonkeyPatch, said: bytes | None) -> ServerEngine:
    """The engine, started on a server that says this whatever it is asked; None: it hangs up."""

    async def say(request: web.Request) -> web.Response:
        if said is None:
            assert request.transport is not None
            request.transport.close()
        return web.Response(body=said)

    app = web.Application()
    app.router.add_get("/{path:.*}", say)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(ChildServer, "start", lambda child: _already())
    monkeypatch.setattr(ChildServer, "base_url", f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        await engine.start()
    finally:
        await runner.cleanup()
    return engine


def server(**spec: Any) -> ServerEngine:
    return ServerEngine(EngineSpec("server", command=("serve", "{port}"), **spec))


def test_its_models_are_those_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b'{"data": [{"id": "big"}, {"id": "small"}]}'
    assert asyncio.run(started(server(model="other"), monkeypatch, said)).models == ("big", "small")


@pytest.mark.parametrize("said", NOTHING_OF_MODELS)
def test_a_server_that_names_no_model_serves_the_one_that_is_given(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    assert asyncio.run(started(server(model="mine"), monkeypatch, said)).models == ("mine",)


@pytest.mark.parametrize("said", NOTHING_OF_MODELS)
def test_without_any_model_it_asks_for_one_in_a_sentence(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    with pytest.raises(FatalError, match=r"does not say .* give --model NAME\.$"):
        asyncio.run(started(server(), monkeypatch, said))


def test_a_server_that_hangs_up_on_the_question_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FatalError, match=r"server was ready, but did not answer at /v1/models \("):
        asyncio.run(started(server(model="mine"), monkeypatch, None))


@pytest.mark.parametrize("said", NOTHING_OF_MODELS)
def test_a_vllm_that_does_not_tell_its_version_or_its_limits_is_used_without(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    engine = asyncio.run(started(VllmEngine(EngineSpec("vllm", model="m")), monkeypatch, said))
    assert (engine.version, engine.models, engine.in_flight) == (None, ("m",), engine.default_in_flight)
