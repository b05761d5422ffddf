"""The last lines of a command that saw a batch end: what came of it, where things are, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from cli import quantities as q
from cli.console import say
from cli.exit_codes import NotFinished
from cli.progress import error_lines, facts
from synthgen.batch import Batch, Progress
from synthgen.ports import Services

MOCKED = "The text is mocked: the mock engine made it up, no model was asked."


def summarise(
    services: Services, progress: Progress, *, seconds: float, finished_now: int, places: Sequence[tuple[str, str]] = ()
) -> None:
    """``seconds`` and ``finished_now`` are of this command; ``places`` are further pairs of label and text."""
    batch, counts = progress.batch, progress.counts
    groups = services.store.error_groups(batch.id) if counts.failed else []
    speed = f", {q.rate(finished_now / seconds)} requests/s" if seconds > 0 and finished_now else ""
    say(f"{batch.name} ({batch.id}): {batch.state}", style="bold")
    pairs = [*facts(progress), ("time", q.clock(seconds) + speed), *error_lines(groups), *places]
    for label, text in pairs:
        say(f"  {label:<9} {text}")
    for sentence in advice(progress):
        say(sentence)


def advice(progress: Progress) -> list[str]:
    """What to do about failed rows and rejected lines; nothing when there are none."""
    batch, counts = progress.batch, progress.counts
    lines = []
    if counts.failed or batch.rejected:
        lines.append(f"  synthgen errors {batch.id}   lists what failed")
    if counts.failed:
        then = "runs it again" if batch.options.pool else "then run this again"
        lines.append(f"  synthgen retry {batch.id}    {then}")
    return lines


def paused(batch: Batch, go_on: str) -> NotFinished:
    """What a command raises that sees the batch paused; ``go_on`` says how it goes on, where it can."""
    return NotFinished(
        f"Batch {batch.id} is paused: {batch.reason}" + (f" To go on, {go_on}." if batch.can_go_on else "")
    )
