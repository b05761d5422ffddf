"""Where text goes: answers and listings to standard output, everything else to one Rich console on standard error.

To a pipe nothing is coloured, boxed or cut.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click
import orjson
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from synthgen.errors import BadInput

_WIDEST_CELL: Final = 32
_LEAST_ROOM: Final = 24
_INDENT: Final = 4

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


def styled(text: str, **style: Any) -> str:
    """Text for standard output, which loses its style in a pipe; it has none where NO_COLOR is set."""
    return text if console.no_color else click.style(text, **style)


def put_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), drop: Sequence[int] = ()
) -> None:
    """Columns two spaces apart, those in ``right`` aligned right.

    On a terminal that is too narrow the columns in ``drop`` are left out, the first first; then the last one is cut.
    """
    lines = [list(heads), *map(list, rows)]
    widths = _widths(lines)
    shown = _shown_columns(widths, drop)
    for number, line in enumerate(lines):
        cells = [_padded(line[at], widths[at], right=at in right) for at in shown]
        text = _fitting("  ".join(cells).rstrip())
        click.echo(styled(text, bold=True) if number == 0 else text)


def put_explained(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column is prose: on a terminal it is wrapped, beneath its row where no room is beside it.

    Nothing is cut: what is too long for its column pushes the next one to the right.
    """
    lines = [list(heads), *map(list, rows)]
    widths = [min(width, _WIDEST_CELL) for width in _widths(lines)]
    for number, (*cells, prose) in enumerate(lines):
        left = "".join(f"{cell}{' ' * (width - cell_len(cell))}  " for cell, width in zip(cells, widths, strict=False))
        for text in _wrapped(left, prose, sum(width + 2 for width in widths[:-1])):
            click.echo(styled(text, bold=True) if number == 0 else text)


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


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _shown_columns(widths: Sequence[int], drop: Sequence[int]) -> list[int]:
    shown = list(range(len(widths)))
    for column in drop:
        if sum(widths[at] + 2 for at in shown) - 2 <= stdout_width():
            break
        shown.remove(column)
    return shown


def _wrapped(left: str, prose: str, begin: int) -> Iterator[str]:
    room = stdout_width() - begin
    beneath = room < _LEAST_ROOM
    if beneath:
        yield left.rstrip()
        left, begin, room = "", _INDENT, max(_LEAST_ROOM, stdout_width() - _INDENT)
    for part in textwrap.wrap(prose, room) or [""]:
        yield f"{left or ' ' * begin}{part}".rstrip()
        left = ""


def _fitting(text: str) -> str:
    width = stdout_width()
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def stdout_width() -> int:
    """Of the terminal; no limit where standard output is none."""
    if not sys.stdout.isatty():
        return sys.maxsize
    return console.width if console.is_terminal else Console().width
