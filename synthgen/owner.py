"""The name of this process in leases, and whether another name on this host still lives.

After a kill -9 the next run need not wait for a lease to run out: an owner of this very machine whose process is gone
can be rescued at once. Fencing makes a wrong guess harmless for the data, but each costs the shard's calls in flight:
so nothing here may depend on the wall clock, and another machine of our name must not pass for this one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import psutil

_PROC = Path("/proc")
_TOLERANCE = 2.0
"""Seconds between two readings of one start time, where the system tells it by the wall clock."""


def current_owner() -> str:
    """``host/boot id/pid namespace/pid/start``: clock ticks since boot on Linux, elsewhere seconds since 1970."""
    return _owner_with(os.getpid())


def dead_owners(owners: Iterable[str]) -> list[str]:
    """Those that lived here (same host, boot and pid namespace) and whose process is gone; never this process."""
    ours, place = current_owner(), _place()
    return [owner for owner in owners if owner != ours and owner.rsplit("/", 2)[0] == place and not _lives(owner)]


@cache
def _owner_with(pid: int) -> str:
    """Read once: a process keeps its name, whatever becomes of the clock. By pid, because a fork is another process."""
    return f"{_place()}/{pid}/{_start_of(pid)}"


def _lives(owner: str) -> bool:
    _, pid, started = owner.rsplit("/", 2)
    try:
        now = _start_of(int(pid))
        return now is not None and (now == started or ("." in now and abs(float(now) - float(started)) <= _TOLERANCE))
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError, ValueError):
        return False
    except (psutil.AccessDenied, PermissionError):  # somebody's process; whether it is the one meant, nobody tells us
        return True


def _start_of(pid: int) -> str | None:
    """When the process began; None when it has ended and nobody has waited for it yet."""
    if not (_PROC / "self/stat").exists():  # no Linux
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _place() -> str:
    return f"{socket.gethostname()}/{_boot()}/{_namespace()}"


def _boot() -> str:
    """Tells machines of one name apart, clones too."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def _namespace() -> str:
    try:
        return (_PROC / "self/ns/pid").readlink().name
    except OSError:
        return "-"
