"""How much memory is in use on a worker's GPUs, as ``nvidia-smi`` tells it; unknown where there is none."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Final

_PATIENCE: Final = 5.0
_EVERY: Final = 30.0
"""Seconds for which a reading is good: each costs some tenths of a second of somebody's CPU."""


class GpuMemory:
    """Called with every beat; ``gpus`` as in ``0,1``, None for all of this host."""

    def __init__(self, gpus: str | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._program = shutil.which("nvidia-smi")
        self._gpus = gpus
        self._now = now
        self._read_at = float("-inf")
        self._bytes: int | None = None

    def __call__(self) -> int | None:
        """Bytes over all of them together, None where unknown."""
        if self._program is not None and self._now() - self._read_at >= _EVERY:
            self._read_at = self._now()
            self._bytes = self._read(self._program)
        return self._bytes

    def _read(self, program: str) -> int | None:
        which = [f"--id={self._gpus}"] if self._gpus else []
        command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", *which]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)  # noqa: S603
            return sum(int(line) for line in done.stdout.split()) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
