"""Supervises any command that opens an OpenAI-compatible server on this host: vLLM, SGLang, llama.cpp and their like.

Knows ports, health and restarts, not what the server is asked: that is the engine's, over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import aiohttp

from synthgen.engines.guarded_process import GuardedProcess
from synthgen.engines.progress import Progress, Traffic, token_count
from synthgen.errors import BadInput, FatalError

HOST: Final = "127.0.0.1"
_PORT: Final = "{port}"
_PORTS: Final = range(20_000, 32_000)
"""Below those that systems take for outgoing connections: one of these could be gone before it is used."""
_METRICS: Final = "/metrics"
_STARTING_POLL: Final = 0.25
_SERVING_POLL: Final = 5.0
_POLL_PATIENCE: Final = 10.0
"""Seconds for the answer to one poll."""
_SHOWN: Final = 15
"""Last lines when no error is named."""
_LAST: Final = 5
"""Last lines besides the errors that are named."""
_CAUSES: Final = 5
_LONGEST_CAUSE: Final = 400
_NAMED: Final = re.compile(r"\b(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception): .*\S")
_KEPT: Final = 300
_TELLING: Final = re.compile(r"error|exception|traceback|fatal|killed|out of memory", re.IGNORECASE)

log = logging.getLogger("synthgen.engine")


class ServerState(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    DOWN = "down"
    """It died and is about to be started again."""
    FAILED = "failed"
    """It died too often, or never served at all; nothing will start it again."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits on a child server; times in seconds."""

    start: float = 1800.0
    """Until it is healthy: big weights come over slow networks."""
    silence: float = 60.0
    """Once healthy, so long without a good answer to a poll: it hangs, and is ended and started again."""
    stall: float = 300.0
    """Requests in flight, and so long neither a reply nor a token: it hangs however well it calls itself, and is ended
    and started again."""
    stall_unmeasured: float = 1800.0
    """The same where it does not tell its tokens at /metrics."""
    stop: float = 15.0
    """Between SIGTERM and SIGKILL."""
    deaths: int = 5
    """So many of them ``within`` so long: it is given up."""
    within: float = 600.0
    first_wait: float = 1.0
    """Before the first restart; doubled for every further death ``within``, up to ``longest_wait``."""
    longest_wait: float = 30.0


class ChildServer:
    """A server that is our child: ``start`` first, ``stop`` last, all on one event loop.

    ``{port}`` in an argument of ``command`` becomes the port: ``port``, or a free one. ``environ`` replaces the
    environment. ``ready_path`` answers 200 when it can serve; for a server that may say so too early, ``loaded_path``
    answers with an error as long as it starts. Raises BadInput if the command cannot be told its port.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str = "engine",
        environ: Mapping[str, str] | None = None,
        port: int | None = None,
        ready_path: str = "/health",
        loaded_path: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        if not command:
            raise BadInput(f"The {name} server has no command to start it with.")
        if port is None and not any(_PORT in argument for argument in command):
            raise BadInput(f"The {name} command does not say where its port goes: write {_PORT} where it belongs.")
        self.name = name
        self.incarnation = 0
        """How many times it was started. Ask for it before a request, give it to ``lost`` when the request fails."""
        self.state = ServerState.STOPPED
        self.traffic = Traffic()
        """Whoever asks it something notes it here, so that a server that hangs is told from one that is idle."""
        self._command = list(command)
        self._environ = environ
        self._wanted_port = port
        self._port = port or 0
        self._ready_path = ready_path
        self._loaded_path = loaded_path
        self._patience = patience or Patience()
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._process: GuardedProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._doubted = asyncio.Event()
        """Somebody wants to know at once whether it is well."""
        self._ill = False
        """It gave no good answer to the last poll."""
        self._condemned = ""
        """Why this incarnation is to end."""
        self._failure = ""
        self._deaths: deque[float] = deque()
        """When it died, of late and for no known reason."""
        self._served = False

    @property
    def base_url(self) -> str:
        """Such as ``http://127.0.0.1:20123``. It may change with a restart, if another took the port meanwhile."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the server's first process, None while there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Return when it serves. Raises FatalError, with its last lines, if it ends or is too slow before that.

        A server that never served is not started again: a wrong option does not become right.
        """
        assert self._task is None, "start() comes once"
        self.state = ServerState.STARTING
        self._task = asyncio.create_task(self._supervise(), name=f"{self.name} supervisor")
        await self.healthy()

    async def healthy(self) -> None:
        """Wait until it serves. Raises FatalError when it was given up or stopped."""
        while self.state is not ServerState.HEALTHY:
            if self.state in (ServerState.FAILED, ServerState.STOPPED):
                raise FatalError(self._failure or f"The {self.name} server was stopped.", code="engine_gone")
            await self._changed.wait()

    async def lost(self, incarnation: int, *, patience: float = 5.0) -> bool:
        """Did this incarnation die, or does it within ``patience`` seconds? Tells a failed request from a dead engine.

        Errors run ahead of the death that caused them: vLLM, its engine dead, answers 500 for a second, or for half a
        minute on a busy host, before it ends. So as long as it does not call itself well the answer is waited for.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while not self._is_lost(incarnation):
            if loop.time() >= give_up and not self._ill:
                return False
            if patience:
                self._doubted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_STARTING_POLL):
                    await self._changed.wait()
        return True

    def restart(self, reason: str) -> None:
        """End this incarnation as one that died: it ``reason``, and nobody is to ask it any more."""
        if self.state is ServerState.HEALTHY:
            self._condemned = reason
            self._become(ServerState.DOWN)
            self._doubted.set()

    async def over(self, incarnation: int) -> None:
        """Wait until this incarnation died or is about to be ended."""
        while not self._is_lost(incarnation):
            await self._changed.wait()

    def forgive(self) -> None:
        """Its deaths so far have been explained: they count no longer, and the back-off begins anew."""
        self._deaths.clear()

    async def stop(self) -> None:
        """End it and all its processes, within ``patience.stop`` seconds and a moment.

        Close the connections to it first: a server may wait for them, and vLLM does.
        """
        self._become(ServerState.STOPPED)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _is_lost(self, incarnation: int) -> bool:
        return self.incarnation != incarnation or self.state is not ServerState.HEALTHY

    def _become(self, state: ServerState) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _supervise(self) -> None:
        """Start it again and again, until it is stopped or given up."""
        try:
            while True:
                end = await self._live_once()
                deaths = self._count_death()
                if reason := self._hopeless(end, deaths):
                    self._failure = f"{reason} {self._last_words()}"
                    self._become(ServerState.FAILED)
                    return
                wait = min(self._patience.longest_wait, self._patience.first_wait * 2.0 ** (deaths - 1))
                log.error("The %s server %s; it is started again in %g s.", self.name, end, wait)
                await asyncio.sleep(wait)
        finally:
            if self.state is not ServerState.FAILED:  # stopped, or by a fault of ours: nobody may wait for ever
                self._become(ServerState.STOPPED)

    def _count_death(self) -> int:
        """One more; how many of late."""
        now = asyncio.get_running_loop().time()
        self._deaths.append(now)
        while self._deaths[0] < now - self._patience.within:
            self._deaths.popleft()
        return len(self._deaths)

    def _hopeless(self, end: str, deaths: int) -> str:
        """Why it is not started again, empty if it is."""
        if not self._served:
            return f"The {self.name} server {end}."
        if deaths >= self._patience.deaths:
            minutes = self._patience.within / 60
            return f"The {self.name} server died {deaths} times within {minutes:g} minutes; the last time it {end}."
        return ""

    async def _live_once(self) -> str:
        """One life, from start to end; returns how it ended."""
        self._lines.clear()
        self.incarnation += 1
        self._ill = False
        self._condemned = ""
        self._become(ServerState.STARTING)
        if not self._choose_port():
            return f"cannot have port {self._wanted_port}: it is in use"
        command = [argument.replace(_PORT, str(self._port)) for argument in self._command]
        process = GuardedProcess(command, on_line=self._hear, environ=self._environ, grace=self._patience.stop)
        try:
            await process.start()
        except OSError as error:
            return f"could not be started ({error})"
        self._process = process
        ended = asyncio.create_task(process.ended())
        watched = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait({ended, watched}, return_when=asyncio.FIRST_COMPLETED)
            was_ready = self.state is not ServerState.STARTING
            self._become(ServerState.DOWN)
            if ended in done:
                return ended.result() + ("" if was_ready else " before it was ready")
            return watched.result()
        finally:
            ended.cancel()
            watched.cancel()
            await process.end()
            self._process = None

    async def _watch(self) -> str:
        """Poll it for as long as it does well; returns what is wrong with it."""
        loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=_POLL_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            deadline = loop.time() + self._patience.start
            while not (await self._is_ready(session) and await self._has_loaded(session)):
                if loop.time() > deadline:
                    return f"was not ready within {self._patience.start:g} s"
                await asyncio.sleep(_STARTING_POLL)
            self._served = True
            self._become(ServerState.HEALTHY)
            log.info("The %s server is ready at %s.", self.name, self.base_url)
            return await self._end_of_service(session)

    async def _end_of_service(self, session: aiohttp.ClientSession) -> str:
        """Poll it until something is wrong with it; returns what."""
        loop, patience = asyncio.get_running_loop(), self._patience
        progress = Progress(self.traffic, measured=patience.stall, unmeasured=patience.stall_unmeasured)
        heard = loop.time()
        while loop.time() - heard <= patience.silence:
            await self._pause_between_polls()
            if self._condemned:
                return self._condemned
            self._ill = not await self._is_ready(session)
            if not self._ill:
                heard = loop.time()
            if stalled := await progress.stalled(loop.time(), partial(self._count_tokens, session)):
                return stalled
        return f"gave no good answer on {self._ready_path} for {patience.silence:g} s"

    async def _pause_between_polls(self) -> None:
        pause = min(self._patience.silence, self._patience.stall, self._patience.stall_unmeasured) / 4
        await asyncio.sleep(min(_STARTING_POLL, pause))
        with suppress(TimeoutError):
            async with asyncio.timeout(min(_SERVING_POLL, pause)):
                await self._doubted.wait()
        self._doubted.clear()

    async def _has_loaded(self, session: aiohttp.ClientSession) -> bool:
        """One that does not know the path, or the question (501), says nothing about it."""
        if self._loaded_path is None:
            return True
        try:
            async with session.get(self.base_url + self._loaded_path) as reply:
                return reply.status < 500 or reply.status == 501
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.base_url + self._ready_path) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _count_tokens(self, session: aiohttp.ClientSession) -> float | None:
        """As its metrics say; None where it shows none."""
        try:
            async with session.get(self.base_url + _METRICS) as reply:
                return token_count(await reply.text(errors="replace")) if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def _choose_port(self) -> bool:
        """Keep the port that we had, so that the address lasts, unless another has it now."""
        if self._port and _is_free(self._port):
            return True
        if self._wanted_port:
            return False
        self._port = next(port for port in random.sample(_PORTS, len(_PORTS)) if _is_free(port))
        return True

    def _hear(self, line: str) -> None:
        self._lines.append(line)
        log.info("[%s] %s", self.name, line)

    def _last_words(self) -> str:
        lines = telling(self._lines)
        return "\n    ".join(["What it said of it:", *lines]) if lines else "It printed nothing."


def telling(lines: Iterable[str]) -> list[str]:
    """The errors that are named, each once and the first first, then the last lines up to one that speaks of an error.

    Some servers name the cause, print forty lines of how they came to it, then that they failed for "the root cause
    above", and a hundred lines of shutdown noise.
    """
    kept = list(lines)
    errors = [found[0] for line in kept if "WARNING" not in line and (found := _NAMED.search(line))]
    named = list(dict.fromkeys(error[:_LONGEST_CAUSE] for error in errors))[:_CAUSES]
    end = next((index + 1 for index in reversed(range(len(kept))) if _TELLING.search(kept[index])), len(kept))
    last = kept[max(0, end - (_LAST if named else _SHOWN)) : end]
    return [*named, *(line for line in last if not any(cause in line for cause in named))]


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        # As servers do: a connection of the last incarnation that lingers in TIME_WAIT must not be in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
