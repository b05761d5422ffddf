"""``synthgen show``: one request with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click
import orjson

from cli.connection import batch_argument, json_option, services_in_force
from cli.console import put, put_json, put_pairs
from synthgen.errors import NotFound
from synthgen.ports import Services
from synthgen.request import Rejected
from synthgen.results import ShownRequest, show, text_of


@click.command()
@batch_argument
@click.argument("request", metavar="LINE|CUSTOM_ID")
@json_option
def command(reference: str, request: str, *, as_json: bool) -> None:
    """Show one request, its response, timings and attempts.

    A number is a line of the input; where no such line is finished or rejected, it is taken as a custom_id.
    """
    with services_in_force() as services:
        shown = _find(services, services.store.resolve(reference).id, request)
    if isinstance(shown, Rejected):
        _print_rejected(shown, as_json=as_json)
    elif as_json:
        put_json({"request": _asked(shown), "output": shown.output_line})
    else:
        _print(shown)


def _find(services: Services, batch_id: str, request: str) -> ShownRequest | Rejected:
    if request.isdecimal():
        line = int(request)
        with suppress(NotFound):
            return show(services, batch_id, line=line)
        for rejected in services.store.rejected(batch_id, first=line, last=line):
            return rejected
    return show(services, batch_id, custom_id=request)


def _print_rejected(rejected: Rejected, *, as_json: bool) -> None:
    if as_json:
        told = {"line": rejected.line, "code": rejected.code, "message": rejected.message}
        put_json({"request": None, "output": None, "rejected": told})
    else:
        put(f"line {rejected.line} was rejected: {rejected.code}: {rejected.message}")


def _asked(shown: ShownRequest) -> object:
    request = shown.request
    if request is None:
        return shown.input_line.decode(errors="replace")
    return {"custom_id": request.custom_id, "url": request.url, "body": request.body}


def _maker(ours: Mapping[str, Any]) -> str:
    engine = " ".join(part for part in (ours["engine"], ours.get("engine_version")) if part)
    revision = f" at {ours['revision']}" if ours.get("revision") else ""
    return f"{engine or '-'}, model {ours['model'] or '-'}{revision}"


def _token_times(ours: Mapping[str, Any]) -> str:
    """Nothing, unless they were measured."""
    first = f", {ours['ttft_ms']:,} ms to the first token" if "ttft_ms" in ours else ""
    return first + (f", {ours['itl_ms']:,} ms from each to the next" if "itl_ms" in ours else "")


def _print(shown: ShownRequest) -> None:
    row, ours = shown.stored.row, shown.output_line["synthgen"]
    pairs = [
        ("line", str(row.line)),
        ("custom_id", row.custom_id),
        ("outcome", "succeeded" if row.succeeded else f"failed: {row.error_code}: {row.error_message}"),
        ("answered by", _maker(ours) + (", from the cache" if row.cached else "")),
        ("attempts", str(row.attempts)),
        ("latency", f"{row.latency_ms:,} ms" + _token_times(ours)),
        ("tokens", f"{row.prompt_tokens:,} in, {row.completion_tokens:,} out"),
        ("cost", "unknown" if row.cost is None else f"${row.cost:.6f}"),
        ("HTTP status", "none" if row.status_code is None else str(row.status_code)),
        ("shard", str(shown.stored.shard)),
    ]
    put_pairs(pairs)
    put("\nrequest")
    put(orjson.dumps(_asked(shown), option=orjson.OPT_INDENT_2).decode())
    text = text_of(shown.output_line)
    put("\ntext" if text else "\nresponse")
    put(text or orjson.dumps(shown.output_line["response"], option=orjson.OPT_INDENT_2).decode())
