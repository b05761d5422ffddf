"""Real ``synthgen`` commands and workers as processes of their own, for tests of the distributed main job.

What is done to a batch is done by the CLI; only the looking on, which is done often, reads the store directly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import orjson

from synthgen.batch import Progress
from synthgen.ports import Services
from synthgen.settings import load_settings
from synthgen.states import BatchState
from tasks.queues import pool_queue, upkeep_queue
from tasks.wiring import connect

PATIENCE = 60.0
PROMPT = ("--prompt", "{question}")
_SYNTHGEN = Path(sys.executable).with_name("synthgen")
_CELERY = Path(sys.executable).with_name("celery")

QUICK = {
    "SYNTHGEN_LEASE": "3",
    "SYNTHGEN_HEARTBEAT": "0.5",
    "SYNTHGEN_CHECKPOINT": "0.5",
    "SYNTHGEN_GRACE": "5",
    "SYNTHGEN_RESEND_AFTER": "3",
    "SYNTHGEN_UPKEEP_EVERY": "1",
}
"""Settings that make trouble noticed in seconds."""


def until(what: str, condition: Callable[[], Any], *, timeout: float = PATIENCE) -> Any:
    """Poll until ``condition`` gives something true, and give that; fail with ``what`` after ``timeout`` seconds."""
    give_up = time.monotonic() + timeout
    while time.monotonic() < give_up:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"Not within {timeout:g} s: {what}.")


def read_prompts(path: Path) -> list[str]:
    """The questions of a file of GSM8K, as ``PROMPT`` asks them."""
    return [orjson.loads(line)["question"] for line in path.read_bytes().splitlines()]


def text_of(line: dict[str, Any]) -> str:
    """The answer in an output line."""
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


class Process:
    """One process in a session of its own, what it prints in a file."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=dict(environ), cwd=folder, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, text: str, *, timeout: float = PATIENCE) -> None:
        """Wait until the process has printed ``text``."""
        until(f"{self.name} says {text!r}", lambda: text in self.log or self._ended_early(text), timeout=timeout)

    def send(self, number: signal.Signals) -> float:
        """Send a signal; when, in Unix time."""
        os.kill(self._process.pid, number)
        return time.time()

    def kill(self) -> float:
        """As with ``kill -9``; when, in Unix time."""
        when = self.send(signal.SIGKILL)
        self._process.wait(PATIENCE)
        return when

    def ends(self, *, timeout: float = PATIENCE) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait(timeout)

    def end(self) -> None:
        """Whatever state it is in, it and its children are gone afterwards."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ended_early(self, text: str) -> bool:
        code = self._process.poll()
        if code is not None and text not in self.log:
            raise AssertionError(f"{self.name} ended with {code} before it said {text!r}.")
        return False


class Cluster:
    """Commands, workers and batches of one test, in pools of its own."""

    def __init__(self, environ: Mapping[str, str], services: Services, folder: Path) -> None:
        self.environ = dict(environ)
        self.services = services
        self.folder = folder
        self.processes: list[Process] = []
        self.pool = f"pool-{folder.name}"
        self._pools: set[str] = set()

    # ---- commands

    def cli(self, *words: object, expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """``synthgen WORDS`` to its end, which must have the exit code ``expect``."""
        command = [str(_SYNTHGEN), *map(str, words)]
        environ = self.environ | variables
        done = subprocess.run(
            command, capture_output=True, text=True, env=environ, cwd=self.folder, timeout=120, check=False
        )
        assert done.returncode == expect, f"{command[1:]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def submit(self, source: Path, *options: object, pool: str | None = None, **variables: str) -> str:
        """The id of the batch that ``synthgen submit`` made, in this test's part of the cache."""
        pool = pool or self.pool
        self._pools.add(pool)
        scope = ["--pool", pool, "--namespace", self.pool, "--model", "m"]
        return self.cli("submit", source, *scope, *options, **variables).stdout.splitlines()[-1]

    def results(self, batch_id: str, *options: object, expect: int = 0) -> list[dict[str, Any]]:
        """What ``synthgen results`` prints, line by line."""
        done = self.cli("results", batch_id, *options, expect=expect)
        # A model may well say U+0085 or U+2028, at which splitlines() would break a line that JSON does not.
        return [orjson.loads(line) for line in done.stdout.split("\n") if line]

    # ---- processes

    def worker(self, *options: object, pool: str | None = None, ready: bool = True, **variables: str) -> Process:
        """Start ``synthgen worker``; with ``ready`` wait until it takes messages."""
        pool = pool or self.pool
        self._pools.add(pool)
        name = f"worker-{len(self.processes) + 1}"
        started = self.start(name, [str(_SYNTHGEN), "worker", "--pool", pool, *map(str, options)], **variables)
        if ready:
            started.says("ready: pool=")
        return started

    def workers(self, count: int, *options: object, **variables: str) -> list[Process]:
        """Start several at once; all are ready on return."""
        started = [self.worker(*options, ready=False, **variables) for _ in range(count)]
        for worker in started:
            worker.says("ready: pool=")
        return started

    def celery(self, name: str, *words: object, **variables: str) -> Process:
        """``celery -A tasks.app WORDS``."""
        return self.start(name, [str(_CELERY), "-A", "tasks.app", *map(str, words)], **variables)

    def start(self, name: str, command: Sequence[str], **variables: str) -> Process:
        process = Process(name, command, self.environ | variables, self.folder)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.end()
        if url := self.environ.get("SYNTHGEN_BROKER_URL"):
            self._delete_queues(url)

    def _delete_queues(self, url: str) -> None:
        settings = load_settings(self.environ)
        with kombu.Connection(url) as connection, connection.channel() as channel:
            for pool in self._pools:
                channel.queue_delete(pool_queue(settings, pool).name)
            channel.queue_delete(upkeep_queue(settings).name)

    # ---- looking on

    def progress(self, batch_id: str) -> Progress:
        return self.services.store.progress(batch_id)

    def wait(self, batch_id: str, state: BatchState = BatchState.COMPLETED, *, timeout: float = PATIENCE) -> Progress:
        """Until the batch is in this state."""

        def reached() -> Progress | None:
            progress = self.progress(batch_id)
            return progress if progress.batch.state is state else None

        try:
            return until(f"{batch_id} is {state}", reached, timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{error} It is: {self.progress(batch_id).as_dict()}") from None

    def wait_for_answers(self, batch_id: str, count: int, *, timeout: float = PATIENCE) -> None:
        """Until so many rows count as finished, in the middle of the batch."""

        def enough() -> bool:
            progress = self.progress(batch_id)
            assert progress.batch.state is BatchState.IN_PROGRESS, f"{batch_id} is {progress.batch.state} already"
            return progress.counts.finished >= count

        until(f"{batch_id} has {count} answers", enough, timeout=timeout)


@contextmanager
def open_cluster(environ: Mapping[str, str], folder: Path) -> Iterator[Cluster]:
    """Processes with these variables; all have ended afterwards."""
    with connect(load_settings(environ)) as services:
        cluster = Cluster(environ, services, folder)
        try:
            yield cluster
        finally:
            cluster.close()
