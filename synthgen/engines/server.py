"""An OpenAI-compatible server that is our own child: any command that opens one (``--engine server --command …``).

The child lives and dies under ``child_server``; it is asked through the lean OpenAI client. A request that was in
flight when the child died comes back as EngineLost: nobody's fault until the lane has found out whose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import aiohttp
import orjson

from synthgen.engines import fingerprint
from synthgen.engines.base import GPU_VARIABLES, EngineSpec
from synthgen.engines.child_server import ChildServer, Patience, ServerState
from synthgen.engines.openai import OpenAIEngine
from synthgen.errors import BadInput, EngineGone, EngineLost, FatalError, RetryableError, Unreachable
from synthgen.request import Request
from synthgen.response import TIMED_OUT, Reply
from synthgen.settings import child_environment

_ASKED: Final = aiohttp.ClientTimeout(total=30.0)
_TOLD: Final = aiohttp.ClientTimeout(total=600.0)
"""Weights may have to be moved."""
_DYING: Final = (424, *range(500, 600))
"""What a server answers whose engine is dead, before it is dead itself."""


class ServerEngine:
    """``spec.command`` with ``{port}`` where the port goes; its models are what it says at ``/v1/models``."""

    name = "server"
    ready_path = "/v1/models"
    loaded_path: str | None = "/health"
    """Asked at the start alone: llama.cpp names its models while it loads them; of a busy TGI this would be slow."""
    default_in_flight = 256
    patience = Patience(deaths=10, within=1800.0)
    """Finding a request that kills it among 4,096 in flight takes five deaths (see ``suspects``), and then they are
    forgiven; big weights take minutes to be back."""

    def __init__(self, spec: EngineSpec) -> None:
        if spec.base_url:
            raise BadInput(f"The {self.name} engine starts its server itself; leave out --base-url.")
        self.provider = spec.provider or self.name
        self.models: tuple[str, ...] = (spec.model,) if spec.model else ()
        self.version: str | None = None
        self.revision = self.identify(spec)
        self.in_flight = spec.in_flight or self.default_in_flight
        self._spec = replace(spec, options={})  # meant for other workers: the client in here takes none
        self._child = ChildServer(
            self.command(spec),
            name=self.name,
            environ=self.environ(spec),
            ready_path=self.ready_path,
            loaded_path=self.loaded_path,
            patience=replace(self.patience, start=spec.start_timeout or self.patience.start),
        )
        self._client: OpenAIEngine | None = None
        self._client_of = 0
        self._hanging_up: asyncio.Task[None] | None = None

    def command(self, spec: EngineSpec) -> list[str]:
        """What starts the server. Raises BadInput."""
        if not spec.command:
            raise BadInput(
                "The server engine needs the command that opens it: --command 'llama-server --port {port} …'."
            )
        return list(spec.command)

    def identify(self, spec: EngineSpec) -> str:
        """Its ``revision``: two commands may serve one model name, and only ``--provider`` says that they agree."""
        return "" if spec.provider else fingerprint.of_words(spec.command, is_content=fingerprint.is_weights)

    def environ(self, spec: EngineSpec) -> dict[str, str]:
        """What the child sees: our environment, and only the GPUs it is to use."""
        return child_environment(dict.fromkeys(GPU_VARIABLES, spec.gpus) if spec.gpus is not None else {})

    @property
    def ready(self) -> bool:
        return self._child.state is ServerState.HEALTHY

    @property
    def asleep(self) -> bool:
        """A server in general knows no sleep."""
        return False

    @property
    def failed(self) -> bool:
        """It was given up: the worker has to end."""
        return self._child.state is ServerState.FAILED

    async def start(self) -> None:
        await self._child.start()
        self.models = served_models(await self.ask_child("/v1/models")) or self.models
        if not self.models:
            message = f"The {self.name} server does not say at /v1/models which model it serves: give --model NAME."
            raise FatalError(message, code="no_model")
        self.in_flight = self._spec.in_flight or await self.appetite()

    async def appetite(self) -> int:
        """How many requests in flight are good for it."""
        return self.default_in_flight

    async def generate(self, request: Request) -> Reply:
        client = await self._connected()
        incarnation = self._child.incarnation
        try:
            with self._child.traffic.one():
                return await client.generate(request)
        except RetryableError as error:
            unclear = isinstance(error, Unreachable) or error.code == "bad_reply" or error.status_code in _DYING
            patience = 5.0 if unclear and error.code != TIMED_OUT else 0.0
            if await self._child.lost(incarnation, patience=patience):
                raise EngineLost(f"The {self.name} server died with the request in flight.") from error
            raise

    async def health(self) -> None:
        """Raises EngineGone once it was given up, Unreachable while it is started again."""
        if self.failed:
            await self._connected()
        if not self.ready:
            raise Unreachable(f"The {self.name} server is {self._child.state}.")

    async def sleep(self) -> None:
        """There is nothing that it could give back."""

    def forgive(self) -> None:
        self._child.forgive()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        await self._child.stop()
        if self._hanging_up is not None:
            await asyncio.wait({self._hanging_up})

    async def ask_child(self, path: str) -> dict[str, Any]:
        """What the server says of itself at ``path``; nothing where it does not know the path, or says no JSON object.

        Raises FatalError when there is no reply.
        """
        url = self._child.base_url + path
        try:
            async with aiohttp.ClientSession(timeout=_ASKED) as session, session.get(url) as reply:
                said = orjson.loads(await reply.read()) if reply.status == 200 else None
        except orjson.JSONDecodeError:
            said = None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"The {self.name} server was ready, but did not answer at {path} ({error!r})."
            raise FatalError(message, code="engine_gone") from error
        return said if isinstance(said, dict) else {}

    async def tell_child(self, path: str) -> int:
        """POST to the server; the status of its reply."""
        async with aiohttp.ClientSession(timeout=_TOLD) as session, session.post(self._child.base_url + path) as reply:
            return reply.status

    async def _connected(self) -> OpenAIEngine:
        """A client of the server in its present life; waits while it is started again. Raises EngineGone."""
        try:
            await self._child.healthy()
        except FatalError as error:
            raise EngineGone(error.message, code="engine_gone") from error
        if self._client is None or self._client_of != self._child.incarnation:
            model = self._spec.model if self._spec.model in self.models else self.models[0]
            spec = replace(self._spec, base_url=self._child.base_url, model=model, provider=self.provider)
            self._client, self._client_of = OpenAIEngine(spec), self._child.incarnation
            await self._client.start()
            self._hanging_up = asyncio.create_task(self._hang_up(self._client, self._client_of))
        return self._client

    async def _hang_up(self, client: OpenAIEngine, incarnation: int) -> None:
        """Nobody may wait for a server that is no more: it may hang, and another process may have its port by now."""
        await self._child.over(incarnation)
        await client.close()


def served_models(listed: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in what ``/v1/models`` says, as far as it is a list of models."""
    items = listed.get("data")
    named = [item.get("id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return tuple(name for name in named if isinstance(name, str) and name)
