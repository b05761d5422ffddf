"""The real stack as benchmarks drive it: a worker process, submitted batches, and what each process used.

Everything is measured from outside, by the operating system's accounts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from storage.batch_store import PostgresBatchStore
from storage.database import Database
from synthgen.batch import Batch
from synthgen.states import BatchState
from tests.services.rabbitmq import Broker
from tests.services.s3 import S3Server

PYTHON = sys.executable
_PATIENCE = 900


@dataclass(slots=True)
class Usage:
    """CPU seconds and peak resident MB of a process with all its children."""

    cpu: float = 0.0
    peak_mb: float = 0.0

    def read(self, process: psutil.Process) -> None:
        cpu = memory = 0.0
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                cpu += times.user + times.system
                memory += each.memory_info().rss / 1e6
        self.cpu = max(self.cpu, cpu)
        self.peak_mb = max(self.peak_mb, memory)


@dataclass(frozen=True, slots=True)
class Stack:
    """The environment of our commands, a folder for files, and the processes that are watched while batches run."""

    environ: Mapping[str, str]
    folder: Path
    store: PostgresBatchStore
    watched: dict[psutil.Process, Usage] = field(default_factory=dict)

    def submit(self, source: Path, *options: str, usage: Usage | None = None) -> str:
        """The id of the new batch."""
        command = [PYTHON, "-m", "cli", "submit", str(source), *options]
        with subprocess.Popen(
            command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            seen = psutil.Process(process.pid)
            with suppress(psutil.NoSuchProcess):
                while process.poll() is None:
                    if usage is not None:
                        usage.read(seen)
                    time.sleep(0.02)
            output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output.strip().splitlines()[-1]

    def run(self, source: Path, *options: str) -> float:
        """Seconds from the batch's first claim to its end; every request must succeed."""
        batch = self._wait_for(self.submit(source, *options))
        assert batch.started_at is not None
        assert batch.ended_at is not None
        return (batch.ended_at - batch.started_at).total_seconds()

    def until_ready(self, patience: float) -> None:
        """The worker that was started last takes shards. Raises AssertionError after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while b"ready: pool=" not in (self.folder / "worker.log").read_bytes():
            assert time.monotonic() < deadline, "the worker did not become ready"
            time.sleep(0.2)

    def _wait_for(self, batch_id: str) -> Batch:
        """Looks into the database from here: a command for each look would take a third of the machine."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            for process, usage in self.watched.items():
                usage.read(process)
            progress = self.store.progress(batch_id)
            if progress.batch.state is BatchState.COMPLETED:
                assert progress.counts.succeeded == progress.batch.total, progress
                return progress.batch
            time.sleep(0.5)
        raise AssertionError(f"{batch_id} is still {progress.batch.state}: {progress.batch.reason}")

    @contextmanager
    def worker(
        self, *options: str, extra: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> Iterator[psutil.Process]:
        """A worker process with these options; ``extra`` goes behind ``--``, ``environ`` under our own variables."""
        command = [PYTHON, "-m", "cli", "worker", *options, *(("--", *extra) if extra else ())]
        with (self.folder / "worker.log").open("wb") as log:
            variables = {**(environ or {}), **self.environ}
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield psutil.Process(process.pid)
            finally:
                process.terminate()
                process.wait(60)


@pytest.fixture
def stack(tmp_path: Path, database_url: str, broker: Broker, s3_server: S3Server) -> Iterator[Stack]:
    """RabbitMQ, PostgreSQL and a real S3 server, with a queue prefix and a place in the bucket of its own."""
    from synthgen.settings import child_environment

    database = Database(database_url, pool_size=1)
    yield Stack(
        child_environment(
            {
                **s3_server.environ(),
                "SYNTHGEN_HOME": str(tmp_path / "home"),
                "SYNTHGEN_DATABASE_URL": database_url,
                "SYNTHGEN_BROKER_URL": broker.url,
                "SYNTHGEN_QUEUE_PREFIX": broker.queue_prefix,
                "SYNTHGEN_STORAGE_URL": f"s3://{s3_server.bucket}/bench",
                "SYNTHGEN_S3_ENDPOINT_URL": s3_server.endpoint_url,
            }
        ),
        tmp_path,
        PostgresBatchStore(database),
    )
    database.close()
