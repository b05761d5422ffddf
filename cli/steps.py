"""Progress bars of steps that end by themselves: reading, comparing, collecting. They disappear when done."""

from __future__ import annotations

import time
from typing import Final, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cli import quantities as q
from cli.console import console, say

_IN_BYTES: Final = ("reading", "comparing", "uploading", "pulling")
_PLAIN_EVERY: Final = 5.0


class Steps:
    """A ``Notify`` for use cases: a bar on a terminal, to a pipe a line every few seconds."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if console.is_terminal:
            self._draw(step, done, total)
        elif time.monotonic() - self._said_at >= _PLAIN_EVERY:
            self._said_at = time.monotonic()
            say(f"{step}: {amount(step, done, total)}")

    def _draw(self, step: str, done: int, total: int | None) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(compact=True),
                console=console,
                refresh_per_second=4,
                transient=True,
            )
            self._bars.start()
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total, amount="")
        self._bars.update(self._tasks[step], completed=done, total=total, amount=amount(step, done, total))


def amount(step: str, done: int, total: int | None) -> str:
    """How much of it is done, in bytes or lines."""
    write = q.size if step in _IN_BYTES else q.count
    return write(done) if total is None else f"{write(done)} of {write(total)}"
