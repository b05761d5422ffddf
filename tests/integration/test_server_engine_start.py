"""What a server of our own says of itself when it is ready, and all that it may say instead."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from synthgen.engines.base import EngineSpec
from synthgen.engines.child_server import ChildServer, Patience
from synthgen.engines.server import ServerEngine
from synthgen.engines.vllm import VllmEngine
from synthgen.errors import FatalError

PROCESS = (sys.executable, "-S", str(Path(__file__).parents[1] / "fakes/engine_process.py"), "--port", "{port}")
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


def loading(*health: int, start: float = 20.0) -> ServerEngine:
    """A server that names its models from the first moment, and whose /health answers this in turn."""
    words = ("--health", *(str(status) for status in health)) if health else ()
    engine = ServerEngine(EngineSpec("server", command=(*PROCESS, *words), model="m"))
    engine._child._patience = replace(Patience(), start=start, stop=5.0)
    return engine


async def while_it_serves(engine: ServerEngine, test: Callable[[], Awaitable[None]]) -> None:
    try:
        await engine.start()
        await test()
    finally:
        await engine.close()


async def _nothing() -> None:
    """To start is all."""


def test_a_server_that_names_its_models_while_it_loads_them_is_waited_for() -> None:
    with pytest.raises(FatalError, match="was not ready within 1 s"):
        asyncio.run(while_it_serves(loading(503, start=1.0), _nothing))
    asyncio.run(while_it_serves(loading(503, 503, 200), _nothing))


@pytest.mark.parametrize("status", [200, 204, 404, 405, 501])
def test_a_server_that_knows_nothing_of_health_is_taken_at_its_word(status: int) -> None:
    asyncio.run(while_it_serves(loading(status, start=5.0), _nothing))


def test_once_it_has_served_its_health_is_not_asked() -> None:
    engine = loading(200, 503)

    async def test() -> None:
        assert not await engine._child.lost(engine._child.incarnation, patience=1.0)

    asyncio.run(while_it_serves(engine, test))
