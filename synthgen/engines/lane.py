"""Between shard threads and one engine: how many requests are in flight, what is asked again, when to give up.

One event loop in one thread. Workers pull from the shards' queues (measured: one and a half times the requests per core
of a coroutine per request with a semaphore) and end when there is nothing to pull. A request that waits for its next
try is a timer and holds no place.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final, TypeVar

from synthgen.engines.asking import Asking, Job
from synthgen.engines.base import Engine
from synthgen.engines.outcomes import closed_for_long, failure, success
from synthgen.engines.suspects import Suspects
from synthgen.errors import (
    EngineError,
    EngineGone,
    EngineLost,
    FatalError,
    PermanentError,
    RateLimited,
    RetryableError,
    Unreachable,
)
from synthgen.request import Request
from synthgen.response import Reply, engine_label
from synthgen.retry import RetryPolicy, backoff

__all__ = ["Asking", "Lane"]

ENOUGH_FAILURES: Final = 10
"""So many requests that used up their attempts in a row, and no success since their first try: the engine is broken."""

_BUG: Final = "engine_error"

_ABOUT_A_MODEL: Final = frozenset({403, 404})

_LONG_HOLD: Final = 15.0
"""Seconds that somebody who watches would take for a hang."""

_CANCEL_PATIENCE: Final = 5.0
"""Seconds that cancelled requests get to clean up when the lane closes."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one: a third more requests per core than asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Lane:
    """Owns an engine and its event-loop thread. ``start`` first, ``close`` last; everything else from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        policy: RetryPolicy,
        in_flight: int | None = None,
        make_loop: Callable[[], asyncio.AbstractEventLoop] = new_loop,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.name = engine.name
        self.provider = engine.provider
        self.in_flight = in_flight or engine.in_flight
        """Known for good once it is started: some engines are asked what is good for them."""
        self._wanted_in_flight = in_flight
        self._made_by = engine.name
        """What its responses say of their making; all is known once it is started."""
        self.gone: str | None = None
        """Why the engine will never serve again in this process, once that is so."""
        self.engine = engine
        """For what it says of itself: its models, its version, whether it is ready."""
        self._policy = policy
        self._rng = rng
        self._loop = make_loop()
        self._thread = threading.Thread(target=self._run_loop, name="lane", daemon=True)
        self._closing = False
        self._unfinished: list[Asking] = []
        self._open: list[Asking] = []
        """Those with something to send, oldest first."""
        self._turn = 0
        self._sent = 0
        """Requests in flight now, over all askings."""
        self._suspects = Suspects()
        self._replies = 0
        self._successes = 0
        self._successes_at_verdict = 0
        self._tokens = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._forget()

    # ---- any thread

    def start(self) -> None:
        """Start the thread and the engine. Raises FatalError when the engine cannot work."""
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self.engine.start(), self._loop)
        try:
            starting.result()
        except BaseException:
            starting.cancel()  # where we were interrupted, it is still under way
            self._call(self.engine.close())
            self._stop_loop()
            raise
        self.in_flight = self._wanted_in_flight or self.engine.in_flight
        self._made_by = engine_label(self.name, self.engine.version, self.engine.revision)

    def health(self) -> None:
        """Raises Unreachable or FatalError when the engine could not serve now."""
        try:
            self._call(self.engine.health())
        except EngineGone as error:
            self.gone = error.message
            raise

    @property
    def outstanding(self) -> int:
        """Requests in flight now."""
        return self._sent

    @property
    def answered(self) -> int:
        """Requests that the engine has answered since it was started."""
        return self._successes

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens of all these answers."""
        return self._tokens

    def sleep(self) -> None:
        """Tell the engine that nobody has asked for a while; it wakes with the next request."""
        self._call(self._doze())

    async def _doze(self) -> None:
        if self._sent == 0:  # looked at on the loop: nothing can be sent before the engine knows
            await self.engine.sleep()

    def ask(self, requests: Sequence[Request]) -> Asking:
        """Queue ``requests``; returns at once. Raises RuntimeError when the lane is closed."""
        asking = Asking(requests, on_stop=self._on_stop, on_abandon=self._on_abandon)
        self._loop.call_soon_threadsafe(self._admit, asking)
        return asking

    def close(self, grace: float = 0.0) -> None:
        """Stop sending, give what is in flight ``grace`` seconds, cancel the rest, close the engine and the thread."""
        if not self._thread.is_alive():
            self._loop.close()
            return
        try:
            self._call(self._shut(grace))
        finally:
            self._stop_loop()

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _on_stop(self, asking: Asking) -> None:
        with suppress(RuntimeError):  # the loop is closed, and so everything is stopped
            self._loop.call_soon_threadsafe(self._halt, asking)

    def _on_abandon(self, asking: Asking) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel, asking)

    # ---- the loop's thread: coming and going of askings

    def _forget(self) -> None:
        """What was learnt about the engine's health: nothing yet, or nothing any more."""
        self._given_up = 0
        self._limited = 0
        self._silent_since: float | None = None
        self._hold: asyncio.Handle | None = None
        self._held_until = 0.0
        """Kept here, because a handle of uvloop's does not always know when it is due."""

    def _admit(self, asking: Asking) -> None:
        if self._closing:
            asking.halt()
        if asking.settle():
            return
        self._unfinished.append(asking)
        self._open.append(asking)
        self._fill()

    def _halt(self, asking: Asking, fatal: FatalError | None = None) -> None:
        asking.halt(fatal)
        if asking in self._open:
            self._open.remove(asking)
        self._retire(asking)

    def _cancel(self, asking: Asking) -> None:
        self._halt(asking)
        for task in tuple(asking.tasks):
            task.cancel()

    def _halt_all(self, fatal: FatalError | None = None) -> None:
        for asking in tuple(self._unfinished):
            self._halt(asking, fatal)
        if self._hold is not None:
            self._hold.cancel()
        self._forget()

    def _retire(self, asking: Asking) -> None:
        if asking.settle() and asking in self._unfinished:
            self._unfinished.remove(asking)
            if not self._unfinished:
                self._silent_since = None  # silence counts only while somebody waits for a reply

    async def _shut(self, grace: float) -> None:
        self._closing = True
        self._halt_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_PATIENCE)
        await self.engine.close()

    # ---- the loop's thread: sending

    def _fill(self) -> None:
        """Start workers for what can be sent now."""
        if self._hold is not None:
            return
        ready = self._suspects.sendable if self._suspects.any else sum(len(asking.pending) for asking in self._open)
        wanted = min(self.in_flight - len(self._tasks), ready)
        for _ in range(wanted):
            task = self._loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a worker of the lane died", exc_info=error)
        self._fill()

    def _next(self) -> Job | None:
        """The oldest asking has every second turn, so that shards end one after another; all share the other turns."""
        if self._hold is not None:
            return None
        if self._suspects.any:
            return self._suspects.next()
        if not self._open:
            return None
        self._turn += 1
        index = 0 if self._turn & 1 else (self._turn >> 1) % len(self._open)
        asking = self._open[index]
        job = asking.pending.popleft()
        if not asking.pending:
            del self._open[index]
        return job

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while (job := self._next()) is not None:
            asking = job.asking
            self._note_sending(job)
            asking.outstanding += 1
            self._sent += 1
            asking.tasks.add(task)
            started = perf_counter()
            try:
                outcome = await self._try(job)
                self._settle(job, outcome, round((perf_counter() - started) * 1000))
            finally:  # cancelled or not, and only after the response is delivered
                asking.outstanding -= 1
                self._sent -= 1
                asking.tasks.discard(task)
                self._retire(asking)
                if self._sent == 0 and self._suspects.any:
                    self._sort_out()

    async def _try(self, job: Job) -> Reply | EngineError:
        try:
            return await self.engine.generate(job.request)
        except EngineError as error:
            return error
        except asyncio.CancelledError:
            if job.asking.stopped:  # before we cancel, we stop: any other cancellation comes from inside the engine
                raise
            return RetryableError(f"The {self.name} engine broke the request off.", code=_BUG)
        except Exception as error:
            log.exception("engine raised what it must not", extra=self._about(job))
            return EngineError(f"The {self.name} engine failed unexpectedly: {error!r}.", code=_BUG)

    def _about(self, job: Job) -> dict[str, str]:
        return {"engine": self.name, "custom_id": job.request.custom_id}

    def _note_sending(self, job: Job) -> None:
        if job.deadline is None:
            job.deadline = self._loop.time() + self._policy.deadline
        if job.tries == 0:
            job.successes = self._successes
        job.tries += 1
        job.replies = self._replies

    # ---- the loop's thread: outcomes

    def _settle(self, job: Job, outcome: Reply | EngineError, latency_ms: int) -> None:
        """Never raises: a request with neither answer nor failure would keep its shard from ever ending."""
        try:
            if isinstance(outcome, Reply):
                self._succeed(job, outcome, latency_ms)
            else:
                self._fail(job, outcome, latency_ms)
        except Exception as error:
            log.exception("an outcome cannot be taken in", extra=self._about(job))
            fault = EngineError(f"What the {self.name} engine gave cannot be taken in: {error!r}.", code=_BUG)
            job.asking.deliver(failure(job, fault, latency_ms, self._made_by))

    def _succeed(self, job: Job, reply: Reply, latency_ms: int) -> None:
        self._note_reply()
        self._tokens += reply.prompt_tokens + reply.completion_tokens
        self._successes += 1
        self._given_up = self._limited = 0
        job.asking.deliver(success(job, reply, latency_ms, self._made_by))

    def _fail(self, job: Job, error: EngineError, latency_ms: int) -> None:
        if error.status_code is not None:
            self._note_reply()
        match error:
            case FatalError():
                self._stop_for(job, error)
            case PermanentError():
                job.asking.deliver(failure(job, error, latency_ms, self._made_by))
            case RateLimited() if (error.retry_after or 0.0) > self._policy.deadline:
                self._stop_for(job, closed_for_long(error, deadline=self._policy.deadline, now=datetime.now(UTC)))
            case RateLimited():
                self._again(job, error, latency_ms, self._pause(error.retry_after))
            case EngineLost():
                job.deadline = None  # while the engine is away no request's time runs
                self._suspects.lost(job)
            case Unreachable():
                self._after_silence(job, error, latency_ms)
            case RetryableError():
                self._use_up(job, error, latency_ms)
            case _:
                self._give_up(job, error, latency_ms)

    def _sort_out(self) -> None:
        """All are back after a death of the engine, or after a part of the suspects came through."""
        guilty = self._suspects.judge()
        for job in guilty:
            message = f"The engine died {job.deaths} times with this request in flight, at last with no other."
            job.asking.deliver(failure(job, EngineLost(message), 0, self._made_by))
            self._retire(job.asking)
        if guilty and self._successes > self._successes_at_verdict:  # it serves others: not the engine is broken
            self._successes_at_verdict = self._successes
            self.engine.forgive()
        self._fill()

    def _note_reply(self) -> None:
        self._replies += 1
        self._silent_since = None

    def _stop_for(self, job: Job, fatal: FatalError) -> None:
        """Once for all: the other requests in flight come back with the same error, perhaps after a resume.

        A model that is unknown or forbidden is the asking batch's own trouble; the others go on.
        """
        if isinstance(fatal, EngineGone):
            self.gone = fatal.message
        if job.asking.stopped:
            return
        if fatal.status_code in _ABOUT_A_MODEL:
            self._halt(job.asking, fatal)
        else:
            self._halt_all(fatal)

    def _use_up(self, job: Job, error: EngineError, latency_ms: int) -> None:
        job.failures += 1
        if job.failures >= self._policy.attempts:
            self._give_up(job, error, latency_ms)
        else:
            self._again(job, error, latency_ms, backoff(self._policy, job.failures, rng=self._rng))

    def _after_silence(self, job: Job, error: EngineError, latency_ms: int) -> None:
        """No reply. If somebody had one meanwhile this uses up an attempt; else the endpoint itself is in doubt."""
        if self._replies > job.replies:
            self._use_up(job, error, latency_ms)
            return
        now = self._loop.time()
        if self._silent_since is None:
            self._silent_since = now
        left = self._silent_since + self._policy.unreachable_after - now
        if left <= 0:
            seconds = self._policy.unreachable_after
            message = f"{error.message.rstrip('.')}, and nobody got a reply for {seconds:g} s: check that the server"
            self._stop_for(job, FatalError(f"{message} runs and that --base-url is right.", code="unreachable"))
            return
        job.unreached += 1
        self._again(job, error, latency_ms, min(left, backoff(self._policy, job.unreached, rng=self._rng)))

    def _pause(self, retry_after: float | None) -> float:
        """Hold the whole lane for a rate limit; returns seconds until it goes on.

        What the provider says never shortens our own back-off: to wait for nothing would be to ask without end.
        """
        now = self._loop.time()
        wait = retry_after or 0.0
        if self._hold is None:
            self._limited += 1
            wait = max(wait, backoff(self._policy, self._limited, rng=self._rng))
        else:  # one of many in flight that met the same limit
            held = max(0.0, self._held_until - now)
            if wait <= held:
                return held
            self._hold.cancel()
        if wait >= _LONG_HOLD:
            log.warning("The %s engine is limited in its rate: nothing is sent for %.0f s.", self.name, wait)
        self._held_until = now + wait
        self._hold = self._loop.call_later(wait, self._go_on)
        return wait

    def _go_on(self) -> None:
        self._hold = None
        self._fill()

    def _again(self, job: Job, error: EngineError, latency_ms: int, delay: float) -> None:
        """Ask again after ``delay`` seconds, unless that is past the request's deadline."""
        if job.asking.stopped:
            return
        if job.deadline is not None and self._loop.time() + delay > job.deadline:
            self._give_up(job, error, latency_ms)
            return
        self._loop.call_later(delay, self._due, job)
        job.asking.waiting += 1

    def _due(self, job: Job) -> None:
        asking = job.asking
        asking.waiting -= 1
        if asking.stopped:
            return
        if not asking.pending:
            self._open.append(asking)
        asking.pending.appendleft(job)
        self._fill()

    def _give_up(self, job: Job, error: EngineError, latency_ms: int) -> None:
        """The request fails; too many in a row while nobody succeeds are the engine's failure, not theirs."""
        asking = job.asking
        if asking.size >= ENOUGH_FAILURES and not asking.stopped and self._successes == job.successes:
            self._given_up += 1
        if self._given_up >= ENOUGH_FAILURES:
            message = f"The {self.name} engine keeps failing: {ENOUGH_FAILURES} requests in a row used up their tries"
            message = f"{message}. Check the engine, then resume. The last error: {error.message}"
            self._stop_for(job, FatalError(message, code="engine_failing"))
        else:
            asking.deliver(failure(job, error, latency_ms, self._made_by))
