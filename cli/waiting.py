"""What ``watch`` and ``submit --watch`` do: follow a batch that others work on, to its end."""

from __future__ import annotations

from cli.console import say
from cli.exit_codes import Interrupted, NotFinished, exit_code_of_batch
from cli.progress import elapsed_of, follow
from cli.summary import summarise
from synthgen.batch import Batch, Progress
from synthgen.ports import Services
from synthgen.routing import waiting_for
from synthgen.states import ENDED, BatchState


def wait_for(services: Services, batch: Batch) -> int:
    """The exit code that fits the batch's end. Raises NotFinished when it is paused, Interrupted by Ctrl-C."""
    if batch.options.pool is None and batch.state not in ENDED:
        say("Only a 'synthgen run' command works on this batch; if none runs now, run it again.")
    elif missing := waiting_for(services, batch):
        say(missing, style="yellow")
    try:
        progress = follow(services, batch.id, goes_on=_moves)
    except KeyboardInterrupt:
        raise Interrupted(f"The batch goes on without this command; 'synthgen watch {batch.id}' looks again.") from None
    batch = progress.batch
    if batch.state is BatchState.PAUSED:
        raise NotFinished(f"Batch {batch.id} is paused: {batch.reason} To go on: synthgen resume {batch.id}")
    places = [("answers", f"'synthgen results {batch.id} -o FILE' writes them")]
    summarise(services, progress, seconds=elapsed_of(progress), finished_now=progress.counts.finished, places=places)
    return exit_code_of_batch(progress)


def _moves(progress: Progress) -> bool:
    state = progress.batch.state
    return state not in ENDED and state is not BatchState.PAUSED
