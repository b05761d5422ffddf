"""Writes a batch's answers, failures and rejected lines to files or standard output, streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from cli.output_files import writing
from synthgen.batch import Batch
from synthgen.ports import Notify, Services
from synthgen.results import Which, stream_results


def collect(services: Services, batch: Batch, output: str, errors: str | None, notify: Notify) -> None:
    """All responses to ``output`` in input order; with ``errors`` the failed ones and the rejected lines go there."""
    which = Which.ALL if errors is None else Which.SUCCEEDED
    write_pieces(output, counted(stream_results(services, batch.id, which=which), batch.total, notify))
    if errors is not None:
        write_errors(services, batch, errors)


def write_errors(services: Services, batch: Batch, place: str) -> None:
    """The failed responses in input order, then the rejected lines."""
    with writing(place) as file:
        for piece in stream_results(services, batch.id, which=Which.FAILED):
            file.write(piece)
        for line in rejected_lines(services, batch):
            file.write(line)


def write_pieces(place: str, pieces: Iterable[bytes]) -> None:
    with writing(place) as file:
        for piece in pieces:
            file.write(piece)
            if place == "-":
                file.flush()


def counted(pieces: Iterator[bytes], total: int, notify: Notify) -> Iterator[bytes]:
    """The pieces, telling how many lines have passed."""
    done = 0
    for piece in pieces:
        yield piece
        done += piece.count(b"\n")
        notify("collecting", done, total)


def rejected_lines(services: Services, batch: Batch) -> Iterator[bytes]:
    """One JSON object a line: ``batch_id``, ``line``, ``code``, ``message``."""
    for rejected in services.store.rejected(batch.id) if batch.rejected else ():
        value = {"batch_id": batch.id, "line": rejected.line, "code": rejected.code, "message": rejected.message}
        yield orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
