"""vLLM as the worker's child: its OpenAI server on loopback, every flag passed on untouched.

The server and not the Python engine, because its HTTP surface is stable across versions, a crash of it is no crash of
the worker, and every serving feature of vLLM is there. What that costs or gains beside vLLM's own batch runner is
measured by ``make bench-vllm``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from synthgen.engines import fingerprint
from synthgen.engines.base import EngineSpec
from synthgen.engines.server import ServerEngine
from synthgen.engines.vllm_arguments import argument, check, deciding, needs_hub
from synthgen.errors import BadInput, FatalError
from synthgen.models import PulledModel, resolve_model
from synthgen.request import Request
from synthgen.response import Reply

_WAITING_PER_RUNNING: Final = 1
"""Requests in vLLM's waiting queue for each that it can run at once, so that the queue never runs dry: answers of equal
length end all in one step, and then as many must be waiting. It costs vLLM their prompts' memory and nothing else."""

log = logging.getLogger(__name__)


class VllmEngine(ServerEngine):
    """``spec.model`` is what vLLM loads: a name or a folder; ``spec.arguments`` are vLLM's own.

    A name that was pulled is loaded from its folder, without network, and still served under its name.
    """

    name = "vllm"
    ready_path = "/health"
    loaded_path = None

    def command(self, spec: EngineSpec) -> list[str]:
        if not spec.model:
            raise BadInput("The vllm engine needs a model: --model NAME or a folder with weights.")
        check(spec.arguments)
        python = spec.python or sys.executable
        weights = spec.model if self._pulled is None else str(self._pulled.folder)
        own = ["--model", weights, "--host", "127.0.0.1", "--port", "{port}"]
        own += ["--disable-uvicorn-access-log"]  # a line a request, in its log and then in ours
        own += ["--performance-mode", "throughput"]  # nobody waits for one row; what comes later wins
        if self._pulled is not None and argument("--served-model-name", spec.arguments) is None:
            own += ["--served-model-name", spec.model]
        return [python, "-m", "vllm.entrypoints.openai.api_server", *own, *spec.arguments]

    def __init__(self, spec: EngineSpec) -> None:
        revision = argument("--revision", spec.arguments)
        self._pulled: PulledModel | None = None
        if spec.models_dir is not None and spec.model:
            self._pulled = resolve_model(spec.models_dir, spec.model, revision)
        super().__init__(spec)
        self._waking = asyncio.Lock()
        self._slept: int | None = None
        """The incarnation that sleeps."""
        self._sleepless = False
        """It cannot, or could not once: it is not asked again."""

    def identify(self, spec: EngineSpec) -> str:
        """The commit, else ``--revision``; of weights in a folder what is in them. What changes answers follows it."""
        words = deciding(spec.arguments)
        return "+".join(filter(None, (self._weights(spec), fingerprint.of_words(words) if words else "")))

    def _weights(self, spec: EngineSpec) -> str:
        if self._pulled is not None:
            return self._pulled.commit
        if spec.model and Path(spec.model).exists():
            return fingerprint.of_path(Path(spec.model))
        return argument("--revision", spec.arguments) or ""

    def environ(self, spec: EngineSpec) -> dict[str, str]:
        """Sleep and wake-up are among the routes that vLLM serves only when asked to; it listens on loopback alone."""
        offline = {} if self._pulled is None or needs_hub(spec.arguments) else {"HF_HUB_OFFLINE": "1"}
        unlocked = {"VLLM_API_KEY": ""}  # the host's, for servers that it opens to others: ours would refuse us
        return {**offline, **super().environ(spec), "VLLM_SERVER_DEV_MODE": "1", **unlocked}

    async def start(self) -> None:
        await super().start()
        version = (await self.ask_child("/version")).get("version")
        self.version = str(version) if version else None

    async def appetite(self) -> int:
        """Twice what vLLM runs at once, over all its engines; its arguments tell where it does not say itself."""
        said: Mapping[str, Any] = {}
        with suppress(FatalError):  # good to know, no reason not to start
            said = await self.ask_child("/server_info?config_format=json")
        given = argument("--max-num-seqs", self._spec.arguments) or ""
        running = most_running(said) or (int(given) if given.isdigit() else 0)
        return running * (1 + _WAITING_PER_RUNNING) or self.default_in_flight

    async def generate(self, request: Request) -> Reply:
        if self.asleep:
            await self._wake()
        return await super().generate(request)

    @property
    def asleep(self) -> bool:
        """One that died in its sleep is started awake."""
        return self._slept == self._child.incarnation

    async def sleep(self) -> None:
        """Weights go to the host's memory, the cache of keys and values is dropped; needs --enable-sleep-mode."""
        async with self._waking:
            if not self.asleep and self.ready and not self._sleepless:
                # From here on requests wait for the lock: one that meets a half-asleep vLLM is lost.
                self._slept = self._child.incarnation
                if await self._tell("/sleep?level=1"):
                    log.info("vLLM sleeps until there is work.")
                else:
                    self._sleepless, self._slept = True, None
                    log.warning("vLLM cannot sleep: this worker keeps its GPU memory from now on.")

    async def _wake(self) -> None:
        async with self._waking:
            if self.asleep and self.ready and await self._tell("/wake_up"):
                log.info("vLLM is awake again.")
                self._slept = None

    async def _tell(self, path: str) -> bool:
        """Whether it did so; one that only knows no such path (404) is as it was.

        Any other failure leaves its scheduler paused and every request hanging, whatever it says of its health: vLLM
        pauses first and then moves its weights. Only a new one is surely awake.
        """
        try:
            status: object = await self.tell_child(path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status = repr(error)
        if status not in (200, 404):
            self._child.restart(f"answered {path} with {status}, after which it would answer nothing")
        return status == 200


def most_running(server_info: Mapping[str, Any]) -> int | None:
    """How many sequences run at once, from vLLM's ``/server_info`` as JSON; None where it does not say."""
    try:
        config = server_info["vllm_config"]
        return int(config["scheduler_config"]["max_num_seqs"]) * int(config["parallel_config"]["data_parallel_size"])
    except (KeyError, TypeError, ValueError):
        return None
