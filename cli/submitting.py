"""What ``run`` and ``submit`` share: open the inputs, submit them with a progress bar, say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from cli import quantities as q
from cli.batch_options import Wanted
from cli.console import say
from cli.steps import Steps
from synthgen.batch import Batch, EngineIdentity
from synthgen.errors import InvalidLines
from synthgen.other_engines import compare_engines
from synthgen.ports import Services
from synthgen.request import Rejected
from synthgen.settings import Settings
from synthgen.submit import Submission, submit


def submit_inputs(
    services: Services, settings: Settings, wanted: Wanted, *, engine: EngineIdentity | None = None
) -> Submission:
    """Raises BadInput; before InvalidLines it lists the first bad lines. ``engine``: who is to answer, where known."""
    from storage.sources import open_source

    sources = [
        open_source(place, services.objects, endpoint_url=settings.s3_endpoint_url, region=settings.s3_region)
        for place in wanted.inputs
    ]

    def look_at(batch: Batch) -> None:
        if engine is not None:
            tell_of_other_engines(services, batch, engine)

    try:
        with Steps() as steps:
            submission = submit(
                services, sources, wanted.options, name=wanted.name, new=wanted.new, notify=steps, look_at=look_at
            )
    except InvalidLines as error:
        list_rejected(line for line in error.first if isinstance(line, Rejected))
        if error.total > len(error.first):
            say(f"… and {q.count(error.total - len(error.first))} more.")
        raise
    _announce(submission)
    return submission


def check_inputs(inputs: tuple[str, ...]) -> None:
    """Raises UsageError when nothing is named, or standard input is a terminal that nobody types JSON into."""
    if not inputs:
        raise click.UsageError("Name an input: a file, s3://bucket/key, or - for standard input.")
    if inputs.count("-") > 1:
        raise click.UsageError("Standard input (-) can be read only once.")
    if "-" in inputs and sys.stdin.isatty():
        say("Reading requests from the terminal, one JSON object a line; end with Ctrl-D.")


def tell_of_other_engines(services: Services, batch: Batch, engine: EngineIdentity) -> None:
    """Before ``engine`` goes on with a batch. Raises BadInput when it must not."""
    if told := compare_engines(services, batch, engine):
        say(told, style="yellow")


def list_rejected(lines: Iterable[Rejected]) -> None:
    for rejected in lines:
        say(f"line {rejected.line}: {rejected.code}: {rejected.message}")


def _announce(submission: Submission) -> None:
    batch = submission.batch
    if submission.attached:
        say(f"The same input with the same options is unfinished batch {batch.id}: going on with it (--new: another).")
    else:
        say(f"Batch {batch.id}: {q.of(batch.total, 'request')} in {q.of(batch.shards, 'shard')}.")
    if batch.rejected:
        say(f"{q.of(batch.rejected, 'line')} rejected; 'synthgen errors {batch.id}' lists them.", style="yellow")
