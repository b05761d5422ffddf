"""One process with all its descendants, run under a guardian: its output line by line, its end, and how to end it.

When to start it and whether it serves is ``child_server``'s. Only pipes are watched, never SIGCHLD: it works on any
event loop, in any thread, and beside whoever else handles signals.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import IO, Final

_GUARDIAN: Final = str(Path(__file__).with_name("guardian.py"))
_LONGEST_LINE: Final = 4_000
"""Characters of a line that are kept."""
_OUTPUT_PATIENCE: Final = 2.0
"""Seconds for the last words after the end: a process that left the group may hold the pipe open."""


class GuardedProcess:
    """``start`` first, on a running loop; ``end`` last, always. ``on_line`` is called on the loop, without newline.

    ``grace`` is the time in seconds between SIGTERM and SIGKILL. Every process of the group gets both signals.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        on_line: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
        grace: float = 15.0,
    ) -> None:
        self.pid: int | None = None
        """Of the command, not of its guardian."""
        self._command = list(command)
        self._environ = environ
        self._on_line = on_line
        self._grace = grace
        self._transports: list[asyncio.ReadTransport] = []

    async def start(self) -> None:
        """Raises OSError when this host has no process or file descriptor left; a bad command ends by itself."""
        self._guardian, status = _spawn(self._command, self._environ, self._grace)
        assert self._guardian.stdout is not None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        output = asyncio.create_task(self._read_output(await self._reader(self._guardian.stdout)))
        self._gone = asyncio.create_task(self._follow(await self._reader(status), output))

    async def ended(self) -> str:
        """Wait for the command's end; returns how it came, as in "ended with code 1"."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """End the whole group, if it has not ended, and wait until all of it is gone."""
        try:
            self._let_go()
            await asyncio.wait({self._gone})
        finally:
            for transport in self._transports:
                transport.close()

    def _let_go(self) -> None:
        """Tell the guardian to end the group: SIGTERM, grace, SIGKILL."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()

    async def _follow(self, status: asyncio.StreamReader, output: asyncio.Task[None]) -> None:
        while line := await status.readline():
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            match word:
                case "pid":
                    self.pid = int(rest)
                case "code":
                    self._ended.set_result(_how(int(rest)))
                case _:
                    self._ended.set_result(f"could not be started ({rest})")
        self._guardian.wait()
        if not self._ended.done():
            self._clear_up()
        await asyncio.wait({output}, timeout=_OUTPUT_PATIENCE)
        output.cancel()

    def _clear_up(self) -> None:
        """The guardian was killed, and by its death the command; the command's children are left."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._ended.set_result("lost its guardian process")

    async def _read_output(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(65_536):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)  # progress bars end theirs with \r
            for line in lines:
                self._tell(line)
            rest = rest[:_LONGEST_LINE]
        self._tell(rest)

    def _tell(self, line: bytes) -> None:
        if line.strip():
            self._on_line(line.decode(errors="replace").rstrip()[:_LONGEST_LINE])

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)
        return reader


def _spawn(
    command: list[str], environ: Mapping[str, str] | None, grace: float
) -> tuple[subprocess.Popen[bytes], FileIO]:
    """The guardian in a session of its own, so that no Ctrl-C reaches the group, and the pipe of its status."""
    readable, writable = os.pipe()
    status = FileIO(readable)
    try:
        guardian = subprocess.Popen(  # noqa: S603 # the user's own command
            [sys.executable, "-I", "-S", _GUARDIAN, str(writable), str(grace), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            pass_fds=(writable,),
            start_new_session=True,
        )
    except BaseException:
        status.close()
        raise
    finally:
        os.close(writable)
    return guardian, status


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
