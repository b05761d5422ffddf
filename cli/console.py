"""Where text goes: answers and listings to standard output, everything else to one Rich console on standard error.

To a pipe nothing is coloured, boxed or cut.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from synthgen.errors import BadInput

console = Console(stderr=True, highlight=False, markup=False)
"""Everything that is not the answer."""


def say(text: str = "", *, style: str | None = None) -> None:
    """One line for the user, on standard error."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def warn(text: str) -> None:
    say(f"Warning: {text}", style="yellow")


def put(text: str) -> None:
    """One line of the answer, on standard output."""
    click.echo(text)


def put_json(value: Any) -> None:
    """Standard output: JSON for programs, indented for the eye."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def put_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns two spaces apart, those in ``right`` aligned right; on a terminal the last one is cut to fit."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(heads))]
    for number, line in enumerate(lines):
        cells = [
            _padded(cell, width, right=at in right) for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = _fitting("  ".join(cells).rstrip())
        click.echo(click.style(text, bold=True) if number == 0 else text)


def put_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values under each other."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}".rstrip())


def agreed(question: str) -> bool:
    """Whether the user at the terminal agrees. Raises BadInput where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise BadInput("There is no terminal to ask on; add --yes to do it without asking.")
    return click.confirm(question, err=True)


def _padded(cell: str, width: int, *, right: bool) -> str:
    return " " * (width - cell_len(cell)) + cell if right else set_cell_size(cell, width)


def _fitting(text: str) -> str:
    if not sys.stdout.isatty():
        return text
    width = console.width if console.is_terminal else Console().width
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
