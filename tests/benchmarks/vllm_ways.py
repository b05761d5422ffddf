"""The ways to send a file of requests into vLLM that our benchmarks set side by side, each timed without vLLM's start.

Ours is timed from the batch's first claim to its end, run_batch by its own progress bar, the bare client by its loop.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.stack import Stack
from tests.benchmarks.vllm_server import PATIENCE, ask_all, vllm_server
from tests.services.vllm import Vllm

BARE: Final = "bare asynchronous client against a vLLM server"
RUN_BATCH: Final = "vLLM's run_batch"
RUN_BATCH_TUNED: Final = "vLLM's run_batch --performance-mode throughput"
OURS: Final = "synthgen worker end to end"
_PROGRESS = re.compile(rb"100% Completed \| (\d+)/\1 \[.*?, *([\d.]+)(req/s|s/req)\]")


@dataclass(frozen=True, slots=True)
class VllmWays:
    """Each way takes a file of OpenAI Batch lines and returns requests per second; every request must succeed."""

    stack: Stack
    vllm: Vllm

    def bare(self, in_flight: int, shares: AbstractContextManager[object], source: Path) -> float:
        with vllm_server(self.vllm) as address, shares:
            return ask_all(source, address, in_flight)

    def run_batch(self, source: Path, *, flags: Sequence[str] = ()) -> float:
        target = self.stack.folder / "run_batch.jsonl"
        command = [
            str(self.vllm.python), "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(target),
            "--model", str(self.vllm.model), *self.vllm.arguments, *flags,
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, env=self.vllm.environ, timeout=PATIENCE)
        assert _rows(target) == _rows(source)
        return rate_of_run_batch(done.stderr)

    def ours(self, source: Path, *, shares: AbstractContextManager[object] | None = None) -> float:
        options = ["--engine", "vllm", "--model", str(self.vllm.model), "--vllm-python", str(self.vllm.python)]
        with self.stack.worker("--pool", "vllm", *options, extra=self.vllm.arguments, environ=self.vllm.environ):
            self.stack.until_ready(PATIENCE)
            with shares or nullcontext():
                return _rows(source) / self.stack.run(source, "--pool", "vllm")


def rate_of_run_batch(progress: bytes) -> float:
    """Requests per second by the last word of its progress bar, which counts neither start-up nor writing."""
    *_, (_, figure, unit) = _PROGRESS.findall(progress)
    return float(figure) if unit == b"req/s" else 1 / float(figure)


def _rows(path: Path) -> int:
    return len(path.read_bytes().splitlines())
