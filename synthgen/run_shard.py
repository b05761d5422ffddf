"""Runs one shard: claim it, answer what the cache knows, ask the engine for the rest, checkpoint, seal.

Called by Celery tasks and by the embedded loop alike. A crash at any line costs the calls in flight: finished responses
reach the cache within two seconds, and whoever claims the shard next finds them there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from synthgen.answers import Answers
from synthgen.batch import Attempt, Batch, Directive, EngineIdentity
from synthgen.beginnings import by_beginning
from synthgen.completion import fill_window, finish_batch
from synthgen.engines.lane import Asking, Lane
from synthgen.errors import (
    EngineGone,
    FatalError,
    InputChanged,
    LostLease,
    NotFound,
    ServiceUnavailable,
    StateConflict,
    SynthgenError,
)
from synthgen.keeper import Held, Keeper
from synthgen.ports import SealedResult, Services
from synthgen.response import CANCELLED, EXPIRED, NEVER_RAN, Response, never_ran
from synthgen.sharding import result_key
from synthgen.states import BatchState

logger = logging.getLogger(__name__)
given_up = logging.getLogger(f"{__name__}.given_up")
"""What must be said to the person who cancels, too."""

_MOST_FAILURES = 3
"""So many attempts of a shard that end in an unexpected exception, in one worker, and the batch pauses for a look."""
_MOST_ATTEMPTS = 20
"""With so many behind it, over all workers and for whatever reasons, one such exception is enough."""
_MOST_ENGINES = 5
"""With so many attempts behind it, this one too, a shard whose engine is gone takes no other worker's engine along."""
_MOST_LOST = 5
"""So many attempts of a shard whose worker died or fell silent, and the batch pauses: no handler of ours saw why."""
_ENDING_CODES = {Directive.CANCEL: CANCELLED, Directive.EXPIRE: EXPIRED}


@dataclass(frozen=True, slots=True)
class Worker:
    """What a process that runs shards has besides its services; ``stopping`` tells it to give its shards back."""

    lane: Lane
    keeper: Keeper
    identity: EngineIdentity
    stopping: threading.Event = field(default_factory=threading.Event)
    failures: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Unexpected failures by batch and shard: a shard's attempts count those too that ended for good reasons."""


def run_shard(services: Services, worker: Worker, batch_id: str, *, number: int | None = None) -> bool:
    """Run one shard of the batch (None: the lowest that is free) to its end; False when there was none to claim.

    Raises ServiceUnavailable when database or storage stay away (the shard is given back at once; without the database
    it comes back when its lease runs out), SynthgenError when the batch is ending and the shard cannot be closed, or
    does not account for its requests.
    """
    attempt = services.store.claim(
        batch_id, number=number, owner=services.owner, lease=services.limits.lease, engine=worker.identity
    )
    if attempt is None:
        return False
    if attempt.lost >= _MOST_LOST and attempt.directive is Directive.GO:
        _leave_unrun(services, attempt)
        return True
    logger.info("shard begun: %s", _name(attempt))
    with worker.keeper.keep(attempt) as held:
        _guarded(services, _ShardRun(services, held, worker.identity, worker))
    fill_window(services, attempt.batch)
    finish_batch(services, batch_id)
    return True


def _leave_unrun(services: Services, attempt: Attempt) -> None:
    """It would take this worker, too, and the other shards on it: a person has to look first."""
    services.store.release(attempt)
    ended = f"Shard {attempt.shard.number} has ended its worker {attempt.lost} times"
    what_to_do = "see what its workers' logs and their machines say (memory?), then resume"
    _pause(services, attempt.batch, f"{ended}: each died or fell silent while it ran; {what_to_do}.")


def close_shards(services: Services, batch_id: str, *, give_up: bool = False) -> int:
    """Seal the shards that were begun and now only have to end (batch cancelled or expired); how many.

    Their checkpointed answers are kept, the rest never ran. Needs no engine. Raises SynthgenError when one cannot be
    closed, because its input is gone or changed: with ``give_up`` it then ends as one of which nothing ran.
    """
    closed = 0
    while True:
        attempt = services.store.claim(batch_id, number=None, owner=services.owner, lease=services.limits.lease)
        if attempt is None:
            return closed
        if attempt.directive is Directive.GO:  # resumed in the meantime: not ours to close
            services.store.release(attempt)
            return closed
        _guarded(services, _ShardRun(services, Held(attempt), attempt.engine, None), give_up=give_up)
        closed += 1


def _guarded(services: Services, run: _ShardRun, *, give_up: bool = False) -> None:
    """Whatever goes wrong, the shard is given back; what needs a person pauses the batch with a sentence.

    A batch that is ending cannot pause: what keeps the shard from being closed is raised as SynthgenError, unless a
    person has said to ``give_up`` what cannot be read; the store may only be away from where we are.
    """
    attempt = run.attempt
    ending = attempt.directive in _ENDING_CODES
    try:
        run.run()
    except LostLease:
        logger.warning("lease lost, nothing written: %s", _name(attempt))
        _remove_late_checkpoint(services, attempt.batch)
    except EngineGone as error:  # this worker's trouble, not the batch's: others go on with it
        services.store.release(attempt)
        run.stop_worker()
        if attempt.number >= _MOST_ENGINES:
            reason = f"Shard {attempt.shard.number} was begun {attempt.number} times, and its engine died again"
            _pause(services, attempt.batch, f"{reason}: its rows may be what kills it. {error.message}")
    except FatalError as error:
        services.store.release(attempt)
        _pause(services, attempt.batch, error.message)
    except ServiceUnavailable:
        services.store.release(attempt)
        raise
    except SynthgenError as error:
        if ending and give_up and isinstance(error, InputChanged | NotFound):
            given_up.warning("shard given up, its rows count as never run: %s: %s", _name(attempt), error)
            services.store.give_up(attempt)
            return
        services.store.release(attempt)
        if ending:
            raise
        _pause(services, attempt.batch, str(error))
    except Exception as error:
        services.store.release(attempt)
        logger.exception("shard failed: %s", _name(attempt))
        if ending:
            raise SynthgenError(f"Shard {attempt.shard.number} of {attempt.batch.id} cannot end: {error!r}.") from error
        if run.fails_again():
            _pause(services, attempt.batch, f"Shard {attempt.shard.number} failed again and again: {error!r}.")
    finally:
        services.cache.unreserve(owner=attempt.token)


def _name(attempt: Attempt) -> str:
    """An attempt in the log."""
    return f"shard={attempt.batch.id}/{attempt.shard.number} attempt={attempt.number}"


def _remove_late_checkpoint(services: Services, batch: Batch) -> None:
    """What we wrote without knowing that the lease was lost: once all shards have ended nobody else may remove it."""
    if services.store.all_ended(batch.id):
        services.cache.purge(namespace=batch.checkpoint_namespace)


def _pause(services: Services, batch: Batch, reason: str) -> None:
    """``batch`` as the attempt claimed it: what a person has paused and resumed since may be repaired by now."""
    with contextlib.suppress(StateConflict):  # paused, cancelled or expired already: that stands
        services.store.move(batch.id, BatchState.PAUSED, reason=reason, since=batch)
        logger.error("batch paused: batch=%s: %s", batch.id, reason)


class _ShardRun:
    """One attempt. Without a worker it only closes: the checkpoint is kept, nothing is asked."""

    def __init__(self, services: Services, held: Held, identity: EngineIdentity | None, worker: Worker | None) -> None:
        self.attempt: Attempt = held.attempt
        self._services = services
        self._held = held
        self._worker = worker
        self._answers = Answers(services, held.attempt, identity)
        self._taken: list[Response] = []
        """Taken from the lane and not kept yet."""

    def run(self) -> None:
        answers = self._answers
        if self._worker is not None:  # not before the keeper has our lease: this may take its time, and fail
            fill_window(self._services, self.attempt.batch)
        answers.read()
        answers.carry_over()
        misses = answers.look_up(answers.open())
        self._held.counts = answers.counts
        if misses and self._worker is not None and self._wanted() is Directive.GO:
            self._ask(self._worker, misses)
        self._end()

    def stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stopping.set()

    def fails_again(self) -> bool:
        """Note an unexpected failure; whether that was one too many. Then the count begins anew, for a resume."""
        if self._worker is None:
            return False
        if self.attempt.number >= _MOST_ATTEMPTS:
            return True
        failures, shard = self._worker.failures, (self.attempt.batch.id, self.attempt.shard.number)
        failures[shard] += 1
        if failures[shard] < _MOST_FAILURES:
            return False
        del failures[shard]
        return True

    def _wanted(self) -> Directive:
        """What batch and worker want now; a stopping worker gives back as if the batch were paused."""
        directive = self._held.directive
        if directive is Directive.GO and self._worker is not None and self._worker.stopping.is_set():
            return Directive.PAUSE
        return directive

    def _ask(self, worker: Worker, lines: Sequence[int]) -> None:
        """Ask the engine, checkpointing as answers come, until all are in or the attempt has to stop.

        However it ends, nothing is asked any more afterwards: whoever runs the shard next asks for what is missing.
        """
        askings: list[Asking] = []
        try:
            self._follow(worker, lines, askings)
        except ServiceUnavailable:  # what is still to come could not be kept
            raise
        except Exception:
            try:
                self._drain(askings)
            except Exception:  # that of before matters more
                logger.exception("answers not kept: %s", _name(self.attempt))
            raise
        else:
            self._drain(askings)
        finally:
            _abandon(askings)

    def _follow(self, worker: Worker, lines: Sequence[int], askings: list[Asking]) -> None:
        """Until every line is settled or somebody wants something else; raises the FatalError of the engine.

        ``askings`` gets what is asked; lines that others are asking are looked for again and again.
        """
        requests, shared = self._answers.requests, self._answers.shared
        repeats = _Repeats(self._services, self.attempt, self._answers, [line for line in lines if line in shared])
        asked = [line for line in lines if line not in shared]
        askings.append(worker.lane.ask(by_beginning([requests[line] for line in asked])))
        while self._wanted() is Directive.GO:
            turn = repeats.turn()
            if turn:
                askings.append(worker.lane.ask([requests[line] for line in turn]))
                asked += turn
            _wait_for(askings, self._services.limits.checkpoint)
            all_in = all(asking.finished for asking in askings)  # read before the last take, so that none is missed
            arrived = self._checkpoint(askings)
            for asking in askings:
                if asking.fatal is not None:
                    raise asking.fatal
            if all_in:
                closing = any(asking.stopped for asking in askings)  # the lane, not we; it owes nobody an answer
                if closing or not self._answers.open():
                    return
                self._check_answered(asked)
                if not arrived:  # others are asking what we wait for
                    worker.stopping.wait(self._services.limits.checkpoint)

    def _check_answered(self, asked: Sequence[int]) -> None:
        """What we asked ourselves must not be waited for: nobody else will bring it."""
        missing = self._answers.open(asked)
        if missing and self._held.directive is not Directive.LOST:
            raise SynthgenError(f"Line {missing[0]} was asked, and the engine's lane ended without an outcome for it.")

    def _checkpoint(self, askings: Sequence[Asking]) -> bool:
        """Keep what has come since; whether anything has. What could not be kept is tried again with the next."""
        self._taken += [response for asking in askings for response in asking.take()]
        arrived = bool(self._taken)
        if arrived and self._held.directive is not Directive.LOST:
            self._answers.checkpoint(self._taken)
            self._held.counts = self._answers.counts
        self._taken = []
        return arrived

    def _drain(self, askings: Sequence[Asking]) -> None:
        """Send nothing more; what is in flight gets the grace time, unless the lease is lost."""
        for asking in askings:
            if not asking.finished:
                asking.stop()
        deadline = time.monotonic() + self._services.limits.grace
        while not all(asking.finished for asking in askings) and self._held.directive is not Directive.LOST:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            _wait_for(askings, min(remaining, self._services.limits.checkpoint))
            self._checkpoint(askings)
        _abandon(askings)
        self._checkpoint(askings)

    def _end(self) -> None:
        """Seal if all is answered or the batch ends; otherwise give the shard back."""
        directive, answers = self._wanted(), self._answers
        if directive is Directive.LOST:
            raise LostLease(f"{self.attempt.batch.id}: shard {self.attempt.shard.number}")
        unanswered = answers.open()
        if unanswered and directive not in _ENDING_CODES:
            self._services.store.release(self.attempt)
            logger.info("shard given back: %s unanswered=%d", _name(self.attempt), len(unanswered))
            return
        for line in unanswered:
            answers.settle(never_ran(line, answers.requests[line].custom_id, _ENDING_CODES[directive]))
        self._seal()

    def _seal(self) -> None:
        rows, data = self._answers.results()
        key = result_key(self.attempt.batch.id, self.attempt.shard.number, self.attempt.token)
        self._services.objects.put(key, data)
        digest = blake2b(data, digest_size=32).hexdigest()
        untouched = sum(response.error_code in NEVER_RAN for response in self._answers.responses.values())
        result = SealedResult(key, len(data), digest, self._answers.counts, untouched)
        try:
            self._services.store.seal(self.attempt, result, rows)
        except LostLease:
            self._services.objects.delete([key])
            raise
        counts = result.counts
        logger.info(
            "shard done: %s succeeded=%d failed=%d cached=%d",
            _name(self.attempt),
            counts.succeeded,
            counts.failed,
            counts.cached,
        )


class _Repeats:
    """Repeated deterministic lines: each question is asked by one attempt, the others take its answer.

    Among the lines of this shard the first asks; among shards the one whose announcement in the cache came first. When
    that one gives up or dies, its announcement goes or lapses and the next asks.
    """

    def __init__(self, services: Services, attempt: Attempt, answers: Answers, lines: Sequence[int]) -> None:
        self._cache = services.cache
        self._lease = 3 * services.limits.lease
        self._token = attempt.token
        self._answers = answers
        self._lines = list(lines)
        self._asked: dict[bytes, int] = {}

    def turn(self) -> list[int]:
        """Settle what has been answered since; the lines to ask now, one per question."""
        answers = self._answers
        self._share()
        self._lines = answers.look_up(answers.open(self._lines))
        in_flight = {key for key, line in self._asked.items() if line not in answers.responses}
        keys = sorted(in_flight | {answers.key(line) for line in self._lines})
        if not keys:
            return []
        ours = self._cache.reserve(keys, owner=self._token, lease=self._lease)
        self._lines = answers.look_up(self._lines)  # answered between looking and announcing
        return self._first_of_each(ours)

    def _share(self) -> None:
        """Whoever asks what we asked gets our outcome, also where the cache does not have it, or no longer."""
        for line in self._answers.open(self._lines):
            asked = self._asked.get(self._answers.key(line))
            if asked is not None and asked in self._answers.responses:
                self._answers.share(self._answers.responses[asked], line)

    def _first_of_each(self, ours: set[bytes]) -> list[int]:
        granted, waiting = [], []
        for line in self._lines:
            key = self._answers.key(line)
            if key in ours and key not in self._asked:
                self._asked[key] = line
                granted.append(line)
            else:
                waiting.append(line)
        self._lines = waiting  # what is asked is settled by its own reply, and by nothing else
        return granted


def _abandon(askings: Sequence[Asking]) -> None:
    unfinished = [asking for asking in askings if not asking.finished]
    for asking in unfinished:
        asking.abandon()
    for asking in unfinished:
        asking.wait(1.0)


def _wait_for(askings: Sequence[Asking], seconds: float) -> None:
    """Until all are settled, at most so long: a checkpoint's worth of answers at a time."""
    deadline = time.monotonic() + seconds
    for asking in askings:
        asking.wait(max(0.0, deadline - time.monotonic()))
