"""Ctrl-C while requests are in flight: the first asks the work to stop well, the second leaves at once."""

from __future__ import annotations

import os
import signal
from threading import Event
from types import FrameType
from typing import Final, Self

from cli.console import console
from cli.exit_codes import INTERRUPTED

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Interrupts:
    """While its block runs, SIGINT and SIGTERM set ``stopping``. Use it on the main thread.

    ``go_on`` ends the sentence "To go on, …": with ``--new`` or standard input the same command would ask all anew.
    """

    def __init__(self, stopping: Event, *, grace: float, go_on: str) -> None:
        self._stopping = stopping
        self._grace = grace
        self._go_on = go_on
        self.happened = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self) -> str | None:
        if not self.happened:
            return None
        return f"Stopping: what is in flight gets up to {self._grace:g} s; Ctrl-C again leaves at once."

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the shape of a handler
        if self.happened:
            farewell = f"\nLeft at once; only the requests in flight are lost. To go on, {self._go_on}.\n"
            os.write(2, (_SHOW_CURSOR if console.is_terminal else b"") + farewell.encode())
            os._exit(INTERRUPTED)
        self.happened = True
        self._stopping.set()
