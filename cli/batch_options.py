"""Inputs and options of ``run`` and ``submit`` that make a batch what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import PurePosixPath
from typing import Any, TypeVar

import click
import orjson
from click.core import ParameterSource

from cli.name_value import NAME_VALUE
from cli.quantities import COUNT, Duration, Size
from storage.packing import PACKED
from synthgen.batch import BatchOptions, CacheMode, OnInvalid

R = TypeVar("R")

_PLAIN = BatchOptions()
_LINES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants submitted."""

    inputs: tuple[str, ...]
    name: str
    new: bool
    options: BatchOptions


def _name(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Most likely a shell variable that is not set."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; name one, or leave the option out.", param=param)
    return value


_OPTIONS = (
    click.option("--name", help="Name of the batch (default: the first input's)."),
    click.option("--model", callback=_name, help="Model for lines that name none."),
    click.option(
        "--set",
        "defaults",
        type=NAME_VALUE,
        multiple=True,
        metavar="NAME=VALUE",
        help="Body field for lines that do not set it, for example temperature=0.7. VALUE is JSON or text. Repeatable.",
    ),
    click.option(
        "--prompt", metavar="TEMPLATE", help="Makes a prompt of a row: 'Solve: {question}' fills in its field."
    ),
    click.option(
        "--system", metavar="TEXT", help="System message (/v1/responses: instructions) for lines that have none."
    ),
    click.option("--endpoint", metavar="PATH", help="Endpoint of all lines (default: the first line's, or chat)."),
    click.option(
        "--on-invalid",
        type=click.Choice([policy.value for policy in OnInvalid]),
        default=_PLAIN.on_invalid.value,
        show_default=True,
        help="Bad lines: store nothing, or skip them and run the others. 'synthgen errors' lists what was skipped.",
    ),
    click.option(
        "--cache",
        type=click.Choice([mode.value for mode in CacheMode]),
        default=_PLAIN.cache.value,
        show_default=True,
        help="Stored responses: use them, ask all anew and store, or neither.",
    ),
    click.option("--namespace", default=_PLAIN.namespace, show_default=True, help="Part of the cache to use."),
    click.option(
        "--cache-ttl",
        type=Duration(),
        help="How long responses stay stored, for example 7d or 12h. A shard that is not finished by then (its batch "
        "was paused for longer) asks for them again.",
    ),
    click.option(
        "--completion-window",
        "--window",
        type=Duration(),
        help="The batch expires when it takes longer, for example 24h.",
    ),
    click.option(
        "--shard-requests",
        type=COUNT,
        metavar="N",
        default=_PLAIN.shard_requests,
        show_default=True,
        help="Most requests in a shard.",
    ),
    click.option(
        "--shard-bytes", type=Size(), default=_PLAIN.shard_bytes, show_default=True, help="Most bytes in a shard."
    ),
    click.option("--new", is_flag=True, help="Make another batch, even if one of the same content is unfinished."),
)


def batch_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds inputs and options; the command receives them as ``wanted``."""

    @wraps(command)
    def with_wanted(*, inputs: tuple[str, ...], name: str | None, new: bool, **given: Any) -> R:
        values = {field: given.pop(field) for field in _FIELDS}
        defaults = {field: _json_or_text(text) for field, text in given.pop("defaults")}
        values |= {"on_invalid": OnInvalid(values["on_invalid"]), "cache": CacheMode(values["cache"])}
        options = BatchOptions(**values, model=given.pop("model"), defaults=defaults)
        wanted = Wanted(inputs, name or stem(inputs[0] if inputs else "-"), new, options)
        return command(wanted=wanted, **given)

    for option in reversed(_OPTIONS):
        with_wanted = option(with_wanted)
    return with_wanted


_FIELDS = (
    "prompt",
    "system",
    "endpoint",
    "on_invalid",
    "cache",
    "namespace",
    "cache_ttl",
    "completion_window",
    "shard_requests",
    "shard_bytes",
)


def refuse_for_an_existing_batch() -> None:
    """A batch that exists is what it is. Raises UsageError naming the given options that would be lost."""
    context = click.get_current_context()
    lost = [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name in (*_FIELDS, "name", "defaults", "new")
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if lost:
        raise click.UsageError(f"--batch goes on with a batch as it was submitted; leave out {', '.join(lost)}.")


def stem(place: str) -> str:
    """An input's name without folders and endings: ``questions`` for ``data/questions.jsonl.gz``."""
    if place == "-":
        return "stdin"
    name = PurePosixPath(place).name
    for endings in (PACKED, _LINES):
        for ending in endings:
            name = name.removesuffix(ending)
    return name or "batch"


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
