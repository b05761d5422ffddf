"""A server whose "GPU" can hang while it goes on calling itself well.

``python -m tests.fakes.hanging_server --port N --journal FILE``. A prompt with ``[[stub hang=1]]`` hangs it, once: no
request is answered any more, and its token counter, which else moves all the time, stands still. Its other metrics move
whatever happens. Every start and the hanging are lines of the journal. With ``--no-metrics`` it shows none.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from aiohttp import web

from tests.stub_llm import StubLLM, prompt_of


class HangingStub(StubLLM):
    def __init__(self, *, port: int, journal: Path, latency: float, metrics: bool) -> None:
        super().__init__(port=port, latency=latency, models=("m",))
        self._journal = journal
        self._metrics = metrics
        self._hung_at: float | None = None

    def note(self, line: str) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            print(line, file=journal)

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        if self._metrics:
            app.router.add_get("/metrics", self._show_metrics)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        prompt = prompt_of(request.path, await request.json())
        if "[[stub hang=1]]" in prompt and "hangs" not in self._journal.read_text():
            self._hung_at = time.monotonic()
            self.note("hangs")
        if self._hung_at is None:
            await asyncio.sleep(self.latency)
        if self._hung_at is not None:
            await asyncio.Event().wait()
        return await super()._answer(request)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        tokens = self._hung_at or time.monotonic()
        lines = [
            "# TYPE vllm:generation_tokens_total counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens!r}',
            f'http_requests_total{{handler="/metrics"}} {time.monotonic()!r}',
            f"process_cpu_seconds_total {time.monotonic()!r}",
        ]
        return web.Response(text="\n".join(lines) + "\n")


async def _run(stub: HangingStub) -> None:
    await stub.start()
    stub.note("starts")
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--no-metrics", dest="metrics", action="store_false")
    asyncio.run(_run(HangingStub(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
