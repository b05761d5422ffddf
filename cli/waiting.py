"""What ``watch`` and ``submit --watch`` do: follow a batch that others work on, to its end.

In an embedded installation those others are one ``synthgen run``; once it was stopped or killed, waiting has no end.
"""

from __future__ import annotations

from typing import Final

from cli.console import say
from cli.exit_codes import Interrupted, NotFinished, exit_code_of_batch
from cli.progress import elapsed_of, follow
from cli.summary import paused, summarise
from synthgen.batch import Batch, Progress
from synthgen.owner import dead_owners
from synthgen.ports import Services
from synthgen.routing import waiting_for
from synthgen.states import ENDED, BatchState, ShardState

_PATIENCE: Final = 5.0
"""Seconds without a running shard after which nobody works on a batch: for moments there is none between two."""


class Attendance:
    """Notices that nobody works on a batch, where that can be known: ``embedded``, and no workers are meant to."""

    def __init__(self, services: Services, *, embedded: bool) -> None:
        self._services = services
        self._embedded = embedded
        self._attended_at = services.clock.monotonic()

    def check(self, progress: Progress) -> None:
        """Raises NotFinished when nobody has worked on the batch for a while."""
        batch, now = progress.batch, self._services.clock.monotonic()
        left = self._embedded and batch.options.pool is None and batch.state is BatchState.IN_PROGRESS
        if not left or self._someone_works(progress):
            self._attended_at = now
        elif now - self._attended_at >= _PATIENCE:
            raise NotFinished(
                f"Nobody works on batch {batch.id}: run 'synthgen run --batch {batch.id}' with its engine options."
            )

    def _someone_works(self, progress: Progress) -> bool:
        """Owners are those of all batches: whoever of them lives rescues what the dead ones hold of this batch."""
        if not progress.shards.get(ShardState.RUNNING):
            return False
        owners = self._services.store.owners()
        return len(dead_owners(owners)) < len(owners)


def wait_for(services: Services, batch: Batch, *, embedded: bool = False) -> int:
    """The exit code that fits the batch's end. Raises NotFinished when it is paused or left, Interrupted by Ctrl-C."""
    attendance = Attendance(services, embedded=embedded)

    def goes_on(progress: Progress) -> bool:
        attendance.check(progress)
        return _moves(progress)

    if batch.options.pool is None and batch.state not in ENDED and not embedded:
        say("Only a 'synthgen run' command works on this batch; if none runs now, run it again.")
    elif missing := waiting_for(services, batch):
        say(missing, style="yellow")
    try:
        progress = follow(services, batch.id, goes_on=goes_on)
    except KeyboardInterrupt:
        raise Interrupted(f"Only the watching has ended; 'synthgen watch {batch.id}' looks again.") from None
    batch = progress.batch
    if batch.state is BatchState.PAUSED:
        raise paused(batch, f"run 'synthgen resume {batch.id}'")
    places = [("answers", f"'synthgen results {batch.id} -o FILE' writes them")]
    summarise(services, progress, seconds=elapsed_of(progress), finished_now=progress.counts.finished, places=places)
    return exit_code_of_batch(progress)


def _moves(progress: Progress) -> bool:
    state = progress.batch.state
    return state not in ENDED and state is not BatchState.PAUSED
