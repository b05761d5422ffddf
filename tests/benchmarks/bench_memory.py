"""Part of ``make bench``: peak memory of every process while large batches run and are submitted, embedded.

``BENCH_RUN`` (default 100000,1000000) are run to the end, ``BENCH_SUBMIT`` (default 1000000,10000000) only cut and
stored. Prints a table in Markdown; kept by hand in docs/benchmarks.md. Flat means: the rows of a column are alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import workload

_RUN = [int(n) for n in os.environ.get("BENCH_RUN", "100000,1000000").split(",") if n]
_SUBMIT = [int(n) for n in os.environ.get("BENCH_SUBMIT", "1000000,10000000").split(",") if n]
_ENGINE = ("--engine", "mock", "--model", "mock")


@dataclass(frozen=True, slots=True)
class Peak:
    """Resident megabytes at their highest; of PostgreSQL the private part of all its processes together."""

    synthgen: float
    postgres: float
    seconds: float


def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails only when a command fails."""
    environ = {**os.environ, "SYNTHGEN_HOME": str(tmp_path / "home")}
    rows = []
    for count in _RUN:
        source = workload.write(tmp_path / "batch.jsonl", count, salt=f"run{count}-")
        command = ["run", str(source), *_ENGINE, "-o", str(tmp_path / "out.jsonl"), "--force"]
        rows.append((f"run {count:,} lines", count, _watch(command, environ)))
        with (tmp_path / "out.jsonl").open("rb") as answers:
            assert sum(1 for _ in answers) == count
    for count in _SUBMIT:
        source = workload.write(tmp_path / "batch.jsonl", count, salt=f"submit{count}-")
        rows.append((f"submit {count:,} lines", count, _watch(["submit", str(source)], environ)))
    subprocess.run([sys.executable, "-m", "cli", "db", "stop"], env=environ, check=True, capture_output=True)
    with capsys.disabled():
        print("\n\n| what | synthgen, peak MB | PostgreSQL, peak MB | lines per second |\n|---|---|---|---|")
        for what, count, peak in rows:
            rate = count / peak.seconds
            print(f"| {what} | {peak.synthgen:.0f} | {peak.postgres:.0f} | {rate:,.0f} |")


def _watch(arguments: Sequence[str], environ: dict[str, str]) -> Peak:
    started = time.perf_counter()
    command = [sys.executable, "-m", "cli", *arguments]
    ours = postgres = 0.0
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                ours = max(ours, seen.memory_info().rss / 1e6)
            postgres = max(postgres, _postgres_mb(environ["SYNTHGEN_HOME"]))
            time.sleep(0.5)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return Peak(ours, postgres, time.perf_counter() - started)


def _postgres_mb(home: str) -> float:
    """Without the shared buffers, which every process would count once more."""
    total = 0.0
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] == "postgres" and process.cwd().startswith(home):
                total += process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
    return total
