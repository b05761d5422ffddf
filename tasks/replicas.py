"""One worker process for each group of GPUs of this host, started and watched together.

Each is a worker like any other; this process only starts them, starts again what fails, and passes signals on. Each
holds one end of a pipe whose other end only this process has: should it be killed, they drain and end too, instead of
going on where nobody watches them.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthgen.engines.base import GPU_VARIABLES
from synthgen.errors import BadInput
from synthgen.retry import RetryPolicy, backoff
from synthgen.settings import Settings, child_environment

logger = logging.getLogger(__name__)

_WAIT = RetryPolicy(base=2.0, cap=60.0)
_HOPELESS = 5
_SETTLED = 300.0
"""Seconds of life after which earlier failures are forgotten."""
_LOOK = 0.2


def gpu_groups(replicas: int, per_replica: int, gpus: str | None, environ: Mapping[str, str]) -> list[str]:
    """Which GPUs each replica sees: consecutive ones of ``gpus``, else of those that this process was given, else
    0, 1, …. Raises BadInput."""
    needed = replicas * per_replica
    by, names = ("--gpus", gpus.split(",")) if gpus else _given(environ)
    names = names or [str(number) for number in range(needed)]
    if len(names) < needed:
        raise BadInput(f"{replicas} replicas of {per_replica} GPUs need {needed}, but {by} names {len(names)}.")
    if gpus and len(names) > needed:
        raise BadInput(
            f"--gpus names {len(names)} GPUs, but {replicas} replicas of {per_replica} take {needed}: no replica gets "
            f"{','.join(names[needed:])}; leave them out, or give --replicas or --gpus-per-replica another number."
        )
    return [",".join(names[start : start + per_replica]) for start in range(0, needed, per_replica)]


def _given(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """What Slurm and its like have set aside for this process: the variable, and the GPUs that it names."""
    for variable in GPU_VARIABLES:
        if environ.get(variable):
            return variable, environ[variable].split(",")
    return "", []


@dataclass(slots=True)
class _Replica:
    """One worker process and how it has fared."""

    gpus: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0
    told: bool = False
    """To end."""
    ended: int | None = field(default=None)
    """Its last exit code, once it is not to be started again."""


def run_replicas(settings: Settings, groups: Sequence[str], *, loglevel: str) -> int:
    """Run one worker per group until all have ended; the worst exit code. SIGTERM and Ctrl-C end all of them."""
    settings.publish()
    replicas = [_Replica(gpus) for gpus in groups]
    stopping = False

    def stop(*_: object) -> None:  # no more than that: it may interrupt the start of a replica
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while any(replica.ended is None for replica in replicas):
        for replica in replicas:
            _look_after(replica, loglevel, stopping=stopping)
        time.sleep(_LOOK)
    return max(abs(replica.ended or 0) for replica in replicas)


def _look_after(replica: _Replica, loglevel: str, *, stopping: bool) -> None:
    if replica.ended is not None:
        return
    if replica.process is None:
        if stopping:
            replica.ended = 0
        elif time.monotonic() >= replica.due:
            _start(replica, loglevel)
        return
    code = replica.process.poll()
    if code is None:
        if stopping and not replica.told:
            replica.told = True
            replica.process.send_signal(signal.SIGTERM)
        return
    if stopping and code == -signal.SIGTERM:  # it was told before it could listen
        code = 0
    replica.process = None
    if time.monotonic() - replica.started > _SETTLED:
        replica.failures = 0
    replica.failures += 1
    if code == 0 or stopping or replica.failures >= _HOPELESS:
        replica.ended = code
        return
    pause = backoff(_WAIT, replica.failures)
    replica.due = time.monotonic() + pause
    logger.error("worker on GPUs %s ended with %d; started again in %.0f s", replica.gpus, code, pause)


def _start(replica: _Replica, loglevel: str) -> None:
    """A process group of its own: Ctrl-C in the terminal reaches us, and we pass it on once.

    ``-P``: with ``-m`` alone Python would take a ``cli`` of the current folder for ours.
    """
    command = [sys.executable, "-P", "-m", "cli", "worker", "--loglevel", loglevel, "--until-stdin-closes"]
    environ = child_environment({"SYNTHGEN_GPUS": replica.gpus})
    replica.process = subprocess.Popen(  # noqa: S603 - our own command
        command, env=environ, process_group=0, stdin=subprocess.PIPE
    )
    replica.started = time.monotonic()
    logger.info("worker on GPUs %s started: pid=%d", replica.gpus, replica.process.pid)
