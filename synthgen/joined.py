"""The inputs of a submission as one stream, and which line of which input a line of the batch is.

Lines are numbered over all inputs; who has to correct one wants file and line. One number for each input tells them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from synthgen.ports import Source
from synthgen.request import Rejected


class JoinedSources:
    """One source after another; a missing last newline is put in between two of them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._before: list[int] = []
        """Of each source that has begun: how many lines came before it."""

    def chunks(self) -> Iterator[bytes]:
        self._before.clear()
        last, lines = b"\n", 0
        for source in self._sources:
            if last != b"\n":
                yield b"\n"
                last, lines = b"\n", lines + 1
            self._before.append(lines)
            for chunk in source.chunks():
                if chunk:
                    yield chunk
                    lines += chunk.count(b"\n") if len(self._sources) > 1 else 0
                    last = chunk[-1:]

    def place(self, line: int) -> str:
        """``line 4``; with several sources ``b.jsonl:2``. Of lines whose bytes have been given by ``chunks``."""
        if len(self._sources) < 2:
            return f"line {line:,}"
        number = bisect_left(self._before, line) - 1
        return f"{self._sources[number].name}:{line - self._before[number]}"

    def placed(self, rejected: Rejected) -> Rejected:
        """With its place in the message, where the number alone does not tell it."""
        if len(self._sources) < 2:
            return rejected
        return replace(rejected, message=f"{self.place(rejected.line)}: {rejected.message}")
