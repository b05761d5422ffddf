"""vLLM as the worker's child: its OpenAI server on loopback, every flag passed on untouched.

The server and not the Python engine, because its HTTP surface is stable across versions, a crash of it is no crash of
the worker, and one server with one asynchronous client was faster than vLLM's own batch runner where we measured.
"""

from __future__ import annotations

import sys

from synthgen.engines.base import EngineSpec
from synthgen.engines.server import ServerEngine
from synthgen.errors import BadInput


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

    async def start(self) -> None:
        await super().start()
        said = await self.ask_child("/version")
        self.version = str(said["version"]) if said else None
