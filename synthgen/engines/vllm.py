"""vLLM as the worker's child: its OpenAI server on loopback, every flag passed on untouched.

The server and not the Python engine, because its HTTP surface is stable across versions, a crash of it is no crash of
the worker, and one server with one asynchronous client was faster than vLLM's own batch runner where we measured.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from synthgen.engines.base import EngineSpec
from synthgen.engines.server import ServerEngine
from synthgen.errors import BadInput
from synthgen.request import Request
from synthgen.response import Reply

log = logging.getLogger(__name__)


class VllmEngine(ServerEngine):
    """``spec.model`` is what vLLM loads: a name or a folder; ``spec.arguments`` are vLLM's own."""

    name = "vllm"
    ready_path = "/health"

    def command(self, spec: EngineSpec) -> list[str]:
        if not spec.model:
            raise BadInput("The vllm engine needs a model: --model NAME or a folder with weights.")
        python = spec.python or sys.executable
        own = ["--model", spec.model, "--host", "127.0.0.1", "--port", "{port}"]
        return [python, "-m", "vllm.entrypoints.openai.api_server", *own, *spec.arguments]

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._asleep = False
        self._waking = asyncio.Lock()

    def environ(self, spec: EngineSpec) -> dict[str, str]:
        """Sleep and wake-up are among the routes that vLLM serves only when asked to; it listens on loopback alone."""
        return {**super().environ(spec), "VLLM_SERVER_DEV_MODE": "1"}

    async def start(self) -> None:
        await super().start()
        said = await self.ask_child("/version")
        self.version = str(said["version"]) if said else None

    async def generate(self, request: Request) -> Reply:
        if self._asleep:
            await self._wake()
        return await super().generate(request)

    async def sleep(self) -> None:
        """Weights go to the host's memory, the cache of keys and values is dropped; needs --enable-sleep-mode."""
        async with self._waking:
            if not self._asleep and self.ready and await self.tell_child("/sleep?level=1"):
                self._asleep = True
                log.info("vLLM sleeps until there is work.")

    async def _wake(self) -> None:
        async with self._waking:
            if self._asleep and self.ready:
                await self.tell_child("/wake_up")
                log.info("vLLM is awake again.")
            self._asleep = False
