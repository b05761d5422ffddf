"""A server process that behaves as vLLM's does, but starts in half a second: it dies, sleeps, says its limits.

``python -m tests.fakes.vllm_process --port N --journal FILE``; every other option of vLLM's is let pass. A prompt with
``[[stub die=1]]`` kills it, and so does any request while it sleeps; one with ``[[stub break=7]]`` kills its engine,
once: it answers 500 (``--broken-status``) and calls itself unwell for seven seconds before it ends. ``--fail-sleep`` or
``--fail-wake 500``: what it answers to that, and then it is well and answers nothing for ever, as vLLM does. Every
start, question, sleep and death is a line of the journal, which outlives it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from tests.stub_llm import StubLLM, prompt_of


class VllmStub(StubLLM):
    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(port=given.port, latency=given.latency, models=(given.served_model_name,))
        self._journal: Path = given.journal
        self._max_num_seqs: int = given.max_num_seqs
        self._sleep_status: int = given.fail_sleep
        self._wake_status: int = given.fail_wake
        self._broken_status: int = given.broken_status
        self._paused = False
        self._asleep = False
        self._broken = False

    def note(self, line: str) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            print(line, file=journal)

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/server_info", self._info)
        app.router.add_post("/sleep", self._sleep)
        app.router.add_post("/wake_up", self._wake)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        prompt = prompt_of(request.path, await request.json())
        self.note(f"asked {prompt}")
        if self._paused:
            await asyncio.Event().wait()
        if self._asleep:
            self.note("asked in its sleep")
            os._exit(3)
        if "[[stub break=7]]" in prompt and "breaks" not in self._journal.read_text():
            self.note("breaks")
            self._broken = True
            asyncio.get_running_loop().call_later(7, os._exit, 0)
        if self._broken:
            words = {"message": "EngineCore encountered an issue."}
            return web.json_response({"error": words}, status=self._broken_status)
        if "[[stub die=1]]" in prompt:
            await asyncio.sleep(self.latency)
            self.note("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        return await super()._answer(request)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self._broken else 200)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.1"})

    async def _info(self, request: web.Request) -> web.Response:
        scheduler, parallel = {"max_num_seqs": self._max_num_seqs}, {"data_parallel_size": 1}
        return web.json_response({"vllm_config": {"scheduler_config": scheduler, "parallel_config": parallel}})

    async def _sleep(self, request: web.Request) -> web.Response:
        self.note("sleeps")
        self._asleep = self._sleep_status == 200
        self._paused = self._sleep_status >= 500
        return web.Response(status=self._sleep_status)

    async def _wake(self, request: web.Request) -> web.Response:
        self.note("wakes")
        self._asleep = self._wake_status != 200
        self._paused = self._wake_status != 200
        return web.Response(status=self._wake_status)


def as_python(folder: Path, journal: Path) -> Path:
    """An "interpreter" for ``--vllm-python``: whatever module it is told to run, it runs this one."""
    script = folder / "python"
    root = Path(__file__).parents[2]
    own = f'{sys.executable} -m tests.fakes.vllm_process --journal "{journal}"'
    script.write_text(f'#!/bin/sh\nshift 2\ncd "{root}" && exec {own} "$@"\n')
    script.chmod(0o755)
    return script


async def _run(stub: VllmStub) -> None:
    await stub.start()
    stub.note(f"starts {stub.port}")
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--served-model-name", default="tiny")
    parser.add_argument("--broken-status", type=int, default=500)
    parser.add_argument("--fail-sleep", type=int, default=200)
    parser.add_argument("--fail-wake", type=int, default=200)
    given, _ = parser.parse_known_args()
    asyncio.run(_run(VllmStub(given)))


if __name__ == "__main__":
    main()
