"""How the processor is shared out among the processes of one host, by the operating system's accounts."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import psutil

_NAMES: Final = {
    "-m cli worker": "synthgen worker",
    "vllm.entrypoints.openai.api_server": "vLLM, API server",
    "VLLM::EngineCore": "vLLM, scheduler",
    "VLLM::Worker": "vLLM, model",
    "tests.benchmarks.bare_client": "bare client",
    "postgres": "PostgreSQL",
    "beam.smp": "RabbitMQ",
    "weed": "S3 server",
}
"""What a command line holds, and what is said of it; the first that fits."""


class CpuShares:
    """CPU seconds by the kind of process while the block ran, over all rounds; processes that ended in it do not count.

    ``with shares: …`` as often as there are rounds.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.elapsed = 0.0
        self._before: Counter[str] = Counter()
        self._started = 0.0

    def __enter__(self) -> Self:
        self._before, self._started = _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.elapsed += time.perf_counter() - self._started
        self.seconds += _cpu_seconds() - self._before

    def cores(self) -> dict[str, float]:
        """Cores that each kind kept busy, the greediest first."""
        return {name: seconds / self.elapsed for name, seconds in self.seconds.most_common()}


def _cpu_seconds() -> Counter[str]:
    used: Counter[str] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            name = next((said for part, said in _NAMES.items() if part in line), "others")
            used[name] += sum(process.cpu_times()[:2])
    return used
