"""Stands between a worker and the server that it started, so that the server does not outlive the worker.

A script that needs the standard library alone: ``python -I -S guardian.py STATUS_FD GRACE COMMAND...``. Standard input
is a pipe whose other end only the worker holds. When it closes, on purpose or because the worker was killed, the
command's process group gets SIGTERM and GRACE seconds later SIGKILL. (PR_SET_PDEATHSIG set by the worker would not do:
it is tied to the thread that forked, and a server's own children, which hold the GPU's memory, do not have it.)

Lines on STATUS_FD: ``pid N`` once the command runs, then ``code N`` when it has ended (negative: by that signal), or
``error TEXT`` if it could not be started. When STATUS_FD closes, all of the group is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0
"""Seconds for processes to go after SIGKILL; one that is stuck in a driver may never do."""


def main(status: int, grace: float, command: list[str]) -> None:
    # A function, not SIG_IGN: the command would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(  # noqa: S603 # the user's own command
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_guardian,  # noqa: PLW1509 # safe before there is a second thread
        )
    except OSError as error:
        _tell(status, f"error {error.strerror}: {error.filename or command[0]}")
        return
    threading.Thread(target=_end_with_worker, args=(child.pid, grace), daemon=True).start()
    _tell(status, f"pid {child.pid}")
    _tell(status, f"code {child.wait()}")
    _end_rest(child.pid)


def _tell(status: int, line: str) -> None:
    with suppress(BrokenPipeError):  # the worker is gone; its server must go all the same
        os.write(status, f"{line}\n".encode())


def _end_with_worker(group: int, grace: float) -> None:
    while os.read(0, 1):
        pass
    _signal(group, signal.SIGTERM)
    time.sleep(grace)  # when the command ends sooner, so do we
    _signal(group, signal.SIGKILL)
    time.sleep(2 * _PATIENCE)
    os._exit(1)


def _end_rest(group: int) -> None:
    """The command's descendants: vLLM's engine outlives an API server that was killed. They became our children."""
    _signal(group, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(group, number)


def _die_with_guardian() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere nothing takes its place, and a killed guardian leaves the clearing up to the worker."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
