"""Reads a batch's answers back: in input order, streamed from the shards' objects, nothing merged beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import orjson

from synthgen.batch import Batch, Shard
from synthgen.errors import NotFound
from synthgen.ports import Services, ShardStatus, StoredRequest
from synthgen.request import Request, parse_line
from synthgen.response import CANCELLED, EXPIRED, never_ran, output_line
from synthgen.sharding import split_lines
from synthgen.states import ShardState


class Which(StrEnum):
    """Which responses: all of them, the good ones, or the failed ones."""

    ALL = "all"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ShownRequest:
    """One request with all that is known of it, for ``show``."""

    request: Request | None
    input_line: bytes
    stored: StoredRequest
    output_line: dict[str, Any]


def stream_results(
    services: Services,
    batch_id: str,
    *,
    which: Which = Which.ALL,
    follow: bool = False,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[bytes]:
    """Output lines in input order, in pieces of whole lines.

    Of a running batch the sealed shards only; with ``follow`` it waits for each next one until the batch has ended.
    """
    next_shard = 0
    while True:
        batch = services.store.get(batch_id)
        for status in services.store.shards(batch_id, first=next_shard):
            if follow and not _has_ended(status):
                break
            yield from _shard_lines(services, batch, status, which)
            next_shard = status.shard.number + 1
        if not follow or next_shard >= batch.shards:
            return
        wait(0.5)


def texts(lines: Iterator[bytes]) -> Iterator[str]:
    """Just the generated text of each response, one string a response; of failures an empty one."""
    for piece in lines:
        for line in piece.splitlines():
            yield text_of(orjson.loads(line))


def text_of(output: dict[str, Any]) -> str:
    """The text in one output line: message, completion or response text; an embedding as JSON."""
    body = (output["response"] or {}).get("body") or {}
    if output["synthgen"].get("error_code") is not None:
        return ""
    if "choices" in body:
        choice = (body["choices"] or [{}])[0]
        return choice.get("text") or _joined((choice.get("message") or {}).get("content"), "text")
    if "output" in body:
        messages = (item for item in body["output"] if item.get("type") == "message")
        return "".join(_joined(message.get("content"), "output_text") for message in messages)
    return orjson.dumps([item.get("embedding") for item in body.get("data", [])]).decode()


def _joined(content: object, kind: str) -> str:
    """A message's content as one string: it may be a list of parts, of which those of this type are the answer."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part.get("text") or "" for part in parts if part.get("type") == kind)


def show(services: Services, batch_id: str, *, line: int | None = None, custom_id: str | None = None) -> ShownRequest:
    """One finished request: what was asked, what came back. Raises NotFound."""
    batch = services.store.get(batch_id)
    stored = services.store.find_request(batch_id, line=line, custom_id=custom_id)
    row = stored.row
    output = services.objects.get(stored.result_key, start=row.offset, end=row.offset + row.length)
    raw = _input_line(services, batch, stored)
    parsed = parse_line(raw, row.line, batch.options.rules())
    return ShownRequest(parsed if isinstance(parsed, Request) else None, raw, stored, orjson.loads(output))


def _input_line(services: Services, batch: Batch, stored: StoredRequest) -> bytes:
    shard = next(services.store.shards(batch.id, first=stored.shard)).shard
    raw = services.objects.get(batch.input_key, start=shard.start, end=shard.end)
    return raw.split(b"\n")[stored.row.line - shard.first_line].removesuffix(b"\r")


def _has_ended(status: ShardStatus) -> bool:
    return status.state in (ShardState.DONE, ShardState.CANCELLED)


def _shard_lines(services: Services, batch: Batch, status: ShardStatus, which: Which) -> Iterator[bytes]:
    if status.result is None:
        if status.state is ShardState.CANCELLED and which is not Which.SUCCEEDED:
            yield from _never_ran_lines(services, batch, status)
        return
    counts = status.result.counts
    if which is Which.ALL or (which is Which.SUCCEEDED and not counts.failed):
        yield from _whole_lines(services.objects.stream(status.result.key))
    elif (which is Which.SUCCEEDED and counts.succeeded) or (which is Which.FAILED and counts.failed):
        data = services.objects.get(status.result.key)
        wanted = which is Which.SUCCEEDED
        yield b"".join(line for line in data.splitlines(keepends=True) if _is_good(line) is wanted)


def _whole_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that end where a line ends."""
    begun: list[bytes] = []
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end:
            yield b"".join([*begun, piece[:end]])
            begun.clear()
        begun.append(piece[end:])


def _is_good(line: bytes) -> bool:
    return "error_code" not in orjson.loads(line)["synthgen"]


def _never_ran_lines(services: Services, batch: Batch, status: ShardStatus) -> Iterator[bytes]:
    """A shard that was cancelled before it began has no object: its lines are made from the input."""
    batch = services.store.get(batch.id)  # it may have been cancelled since the reading began
    code = EXPIRED if batch.out_of_time else CANCELLED
    for line, custom_id in _asked_for(services, batch, status.shard):
        made = output_line(batch.id, never_ran(line, custom_id or "", code))
        yield made if custom_id is not None else _without_id(made)


def _asked_for(services: Services, batch: Batch, shard: Shard) -> list[tuple[int, str | None]]:
    """Line and id of each request; of an input that is gone or changed as many as were counted, without ids."""
    last_line = shard.first_line + shard.lines - 1
    rejected = {bad.line for bad in services.store.rejected(batch.id, first=shard.first_line, last=last_line)}
    try:
        requests = _read_requests(services, batch, shard, rejected)
    except NotFound:
        requests = []
    if len(requests) == shard.requests:
        return [(request.line, request.custom_id) for request in requests]
    lines = (line for line in range(shard.first_line, last_line + 1) if line not in rejected)  # empty ones among them
    return [(line, None) for line in islice(lines, shard.requests)]


def _read_requests(services: Services, batch: Batch, shard: Shard, rejected: set[int]) -> list[Request]:
    rules = batch.options.rules()
    raw = services.objects.get(batch.input_key, start=shard.start, end=shard.end)
    lines = (line for piece in split_lines([raw], max_bytes=rules.max_bytes) for line, _ in piece)
    numbered = ((number, line) for number, line in enumerate(lines, start=shard.first_line) if number not in rejected)
    parsed = (parse_line(line, number, rules) for number, line in numbered)
    return [request for request in parsed if isinstance(request, Request)]


def _without_id(line: bytes) -> bytes:
    return orjson.dumps(orjson.loads(line) | {"custom_id": None}, option=orjson.OPT_APPEND_NEWLINE)
