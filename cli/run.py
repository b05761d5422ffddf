"""``synthgen run``: submit, work in this process, collect. Run again after a crash, it goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Thread
from typing import TYPE_CHECKING

import click

from cli import quantities as q
from cli.batch_options import Wanted, batch_options, refuse_for_an_existing_batch, stem
from cli.collecting import collect
from cli.connection import services_of
from cli.console import say
from cli.engine_options import engine_options
from cli.exit_codes import Interrupted, exit_code_of_batch
from cli.interrupts import Interrupts
from cli.output_files import STDOUT, CannotWrite, check_contents, check_places
from cli.progress import follow, furthest
from cli.steps import Steps
from cli.submitting import check_inputs, submit_inputs, tell_of_other_engines
from cli.summary import MOCKED, paused, summarise
from synthgen import control
from synthgen.batch import Batch, EngineIdentity, Progress
from synthgen.errors import BadInput
from synthgen.ports import Services
from synthgen.settings import Settings
from synthgen.sharding import default_shards
from synthgen.states import ENDED, BatchState

if TYPE_CHECKING:
    from synthgen.run_shard import Worker

_CONNECTIONS = 20


@dataclass(frozen=True, slots=True)
class _Places:
    output: str
    errors: str | None
    force: bool

    def check(self, services: Services, batch: Batch | None) -> None:
        if not self.force:
            check_contents(services, batch, self.output, self.errors)


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "-o", "--output", metavar="FILE", help="Answers (default: NAME.results.jsonl here; - is standard output)."
)
@click.option(
    "--errors",
    metavar="FILE",
    help="Failed rows go here instead of among the answers, and after them the rejected lines of the input.",
)
@click.option("--force", is_flag=True, help="Replace these files, whatever they hold.")
@click.option("--batch", "reference", metavar="BATCH", help="Go on with this batch instead of submitting an INPUT.")
@batch_options
@engine_options
def command(
    *, wanted: Wanted, settings: Settings, output: str | None, errors: str | None, force: bool, reference: str | None
) -> int:
    """Submit a file, work on it here and collect the answers.

    INPUT is a JSONL file (plain, gzip or zstd), s3://bucket/key, or - for standard input. Its lines are OpenAI Batch
    lines or simply {"prompt": "..."} or {"messages": [...]}. Without --errors there is one line out for every request;
    a line that --on-invalid skip has rejected is none, and 'synthgen errors' lists it. Interrupted or killed, the same
    command goes on where it stopped. With --engine vllm, what stands after -- is passed on to vLLM.
    """
    from storage.sources import check_place
    from tasks.wiring import engine_spec, open_worker

    wanted, arguments = _split(wanted)
    if reference is None:
        check_inputs(wanted.inputs)
    elif wanted.inputs:
        raise click.UsageError("Give an INPUT or --batch, not both.")
    else:
        refuse_for_an_existing_batch()
    settings = settings.override({"model": wanted.options.model, "engine_arguments": arguments or None})
    spec = engine_spec(settings)
    if spec.loads_model:
        wanted = replace(wanted, options=replace(wanted.options, model=None))
    with services_of(settings, connections=_CONNECTIONS, patience=settings.database_patience) as services:
        known = None if reference is None else services.store.resolve(reference)
        name = stem(known.name if known else wanted.name)
        places = _Places(output or f"{name}.results.jsonl", errors, force)
        check_places(places.output, places.errors, inputs=wanted.inputs)
        places.check(services, known)
        if spec.loads_model:  # which may take minutes
            for place in wanted.inputs:
                check_place(place)
        with open_worker(services, settings, spec) as worker:
            if known is not None:
                tell_of_other_engines(services, known, worker.identity)
            batch = known or _submit(services, settings, wanted, places, worker.identity)
            return _run(services, settings, worker, batch, places=places, go_on=_how_to_go_on(batch, wanted))


def _split(wanted: Wanted) -> tuple[Wanted, tuple[str, ...]]:
    """Inputs, and what stands after ``--``: click gives both as one, but no input of ours begins with a dash."""
    words = wanted.inputs
    first = next((place for place, word in enumerate(words) if word.startswith("-") and word != "-"), len(words))
    return replace(wanted, inputs=words[:first]), words[first:]


def _submit(services: Services, settings: Settings, wanted: Wanted, places: _Places, engine: EngineIdentity) -> Batch:
    """The batch to work on. A new one whose answers may not be written where they should go does not stay."""
    submission = submit_inputs(services, settings, wanted, engine=engine)
    batch = submission.batch
    try:
        places.check(services, batch)
    except BadInput:
        if not submission.attached:
            control.cancel(services, batch.id)
            control.remove(services, batch.id)
        raise
    return batch


def _run(services: Services, settings: Settings, worker: Worker, batch: Batch, *, places: _Places, go_on: str) -> int:
    began, before = datetime.now(UTC), services.store.progress(batch.id)
    if batch.state is BatchState.PAUSED:
        control.resume(services, batch.id)
    progress = _work(services, settings, worker, batch, began=began, go_on=go_on)
    _check_ended(progress, go_on)
    seconds = (datetime.now(UTC) - began).total_seconds()
    _collect(services, progress.batch, places)
    finished_now = progress.counts.finished - before.counts.finished
    summarise(services, progress, seconds=seconds, finished_now=finished_now, places=_where(progress, places))
    if worker.lane.name == "mock":
        say(MOCKED)
    return exit_code_of_batch(progress)


def _work(
    services: Services, settings: Settings, worker: Worker, batch: Batch, *, began: datetime, go_on: str
) -> Progress:
    """Work on the batch in a thread and draw it here, until it has ended, is paused, or we are interrupted."""
    from synthgen.work import work_on

    failures: list[BaseException] = []
    shards = settings.shards or default_shards(worker.lane.in_flight, batch.options.shard_requests)

    def work() -> None:
        try:
            work_on(services, worker, batch.id, shards=shards)
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            failures.append(error)

    thread = Thread(target=work, name="synthgen-run", daemon=True)
    with Interrupts(worker.stopping, grace=settings.grace, go_on=go_on) as interrupts:
        thread.start()
        try:
            shown = follow(
                services,
                batch.id,
                goes_on=lambda _: thread.is_alive(),
                wait=thread.join,
                note=interrupts.note,
                since=began,
            )
        finally:
            worker.stopping.set()
            thread.join()
    if failures:
        raise failures[0]
    return furthest(shown, services.store.progress(batch.id))


def _check_ended(progress: Progress, go_on: str) -> None:
    batch, counts = progress.batch, progress.counts
    if batch.state in ENDED:
        return
    if batch.state is BatchState.PAUSED:
        raise paused(batch, go_on)
    raise Interrupted(
        f"Stopped; {q.count(counts.finished)} of {q.count(batch.total)} rows are answered and kept. To go on, {go_on}."
    )


def _collect(services: Services, batch: Batch, places: _Places) -> None:
    try:
        with Steps() as steps:
            collect(services, batch, places.output, places.errors, steps)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped while writing the answers; the batch is {batch.state}: "
            f"'synthgen results {batch.id} -o {places.output}' writes them."
        ) from None
    except CannotWrite as error:
        raise CannotWrite(
            f"{error} The batch is {batch.state}: 'synthgen results {batch.id} -o FILE' writes its answers."
        ) from error


def _where(progress: Progress, places: _Places) -> list[tuple[str, str]]:
    batch, counts = progress.batch, progress.counts
    lines = batch.total if places.errors is None else counts.succeeded
    output = "standard output" if places.output == STDOUT else places.output
    found = [("answers", f"{output} ({q.of(lines, 'line')}, in input order)")]
    if places.errors is not None:
        found.append(("", f"{places.errors} ({q.of(counts.failed + batch.rejected, 'failed or rejected line')})"))
    return found


def _how_to_go_on(batch: Batch, wanted: Wanted) -> str:
    """The end of a sentence; an input that cannot be read twice is not asked for again."""
    if wanted.new or "-" in wanted.inputs or not wanted.inputs:
        return f"run 'synthgen run --batch {batch.id}' with the same engine and output options"
    return "run the same command again"
