"""``synthgen results``: a batch's answers, streamed in input order."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from cli import quantities as q
from cli.collecting import counted, write_errors, write_pieces
from cli.connection import batch_argument, services_of, settings_in_force
from cli.console import say
from cli.exit_codes import exit_code_of_batch
from cli.output_files import STDOUT, check_contents, check_places
from cli.steps import Steps
from cli.summary import paused
from cli.waiting import Attendance
from synthgen.batch import Batch
from synthgen.ports import Notify, Services, say_nothing
from synthgen.results import Which, stream_results, texts
from synthgen.states import ENDED, BatchState


@click.command()
@batch_argument
@click.option("-o", "--output", metavar="FILE", default=STDOUT, help="Instead of standard output.")
@click.option(
    "--errors",
    metavar="FILE",
    help="Failed rows go here instead of among the answers, and after them the rejected lines of the input.",
)
@click.option("--text", is_flag=True, help="Just the text of each answer.")
@click.option("--follow", is_flag=True, help="Of a running batch: wait for the next answers until it ends.")
@click.option("--only", type=click.Choice([Which.SUCCEEDED.value, Which.FAILED.value]), help="Only the rows that did.")
@click.option("--force", is_flag=True, help="Replace these files, whatever they hold.")
def command(
    reference: str, *, output: str, errors: str | None, text: bool, follow: bool, only: str | None, force: bool
) -> int:
    """Write a batch's answers in input order.

    Of a running batch those of its finished shards. With --follow it exits with 3 when rows failed or were rejected.
    """
    if errors is not None and only is not None:
        raise click.UsageError("Give --errors or --only, not both: --errors already parts the two.")
    check_places(output, errors)
    settings = settings_in_force()
    with services_of(settings) as services:
        batch = services.store.resolve(reference)
        if not force:
            check_contents(services, batch, output, errors)
        which = Which.SUCCEEDED if errors is not None else Which(only or Which.ALL)
        attendance = Attendance(services, embedded=settings.embedded) if follow else None
        with Steps() as steps:
            lines = _lines(services, batch, which, attendance, notify=say_nothing if output == STDOUT else steps)
            write_pieces(output, _texts(lines) if text else lines)
        if errors is not None:
            write_errors(services, batch, errors)
        return _close(services, batch, follow=follow)


def _lines(
    services: Services, batch: Batch, which: Which, attendance: Attendance | None, *, notify: Notify
) -> Iterator[bytes]:
    """With ``attendance`` those to come too."""

    def wait(seconds: float) -> None:
        progress = services.store.progress(batch.id)
        if progress.batch.state is BatchState.PAUSED:
            raise paused(progress.batch, f"run 'synthgen resume {batch.id}'")
        if attendance is not None:
            attendance.check(progress)
        time.sleep(seconds)

    follow = attendance is not None
    return counted(stream_results(services, batch.id, which=which, follow=follow, wait=wait), batch.total, notify)


def _texts(lines: Iterator[bytes]) -> Iterator[bytes]:
    return (text.encode() + b"\n" for text in texts(lines))


def _close(services: Services, batch: Batch, *, follow: bool) -> int:
    progress = services.store.progress(batch.id)
    if progress.batch.state not in ENDED:
        finished = f"{q.count(progress.counts.finished)} of {q.count(batch.total)} rows are finished"
        say(
            f"The batch is {progress.batch.state}: {finished}. These are the answers of its finished shards; "
            "--follow waits for the others."
        )
    return exit_code_of_batch(progress) if follow else 0
