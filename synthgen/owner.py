"""The name of this process in leases, and whether another name on this host still lives.

After a kill -9 the next run need not wait for a lease to run out: an owner of this very machine whose process is gone
can be rescued at once. Fencing makes a wrong guess harmless: it costs time, never data.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil


def current_owner() -> str:
    """``host/pid namespace/pid/start time``."""
    pid = os.getpid()
    return f"{_place()}/{pid}/{psutil.Process(pid).create_time():.2f}"


def dead_owners(owners: Iterable[str]) -> list[str]:
    """Those that lived here (same host and pid namespace) and whose process is gone."""
    return [owner for owner in owners if owner.rpartition("/")[0].rpartition("/")[0] == _place() and not _lives(owner)]


def _lives(owner: str) -> bool:
    _, pid, started = owner.rsplit("/", 2)
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:  # somebody's process; whether it is the one that is meant, nobody tells us
        return True


def _place() -> str:
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:  # no Linux
        namespace = "-"
    return f"{socket.gethostname()}/{namespace}"
