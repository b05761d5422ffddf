"""Tells a whole file of another text format from JSON lines some of which are bad, by how it begins.

Otherwise each of its lines would be told as a bad one. In doubt it is JSON lines: bad lines have a policy of their own.
"""

from __future__ import annotations

from typing import Final

import orjson

from synthgen.errors import BadInput

_SEPARATORS: Final = (b",", b"\t", b";")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ARRAY: Final = "one JSON array: give JSON lines, one object a line; jq -c '.[]' FILE makes them"
_TABLE: Final = "CSV: give JSON lines, one object a line, with the row's columns as its fields"


def refuse_other_formats(name: str, head: bytes, *, whole: bool) -> None:
    """``whole`` says that nothing comes after ``head``. Raises BadInput."""
    found = _format_of(head.removeprefix(_BYTE_ORDER_MARK), whole=whole)
    if found is not None:
        raise BadInput(f"{name} looks like {found}.")


def _format_of(head: bytes, *, whole: bool) -> str | None:
    lines = [line for line in head.splitlines() if line.strip()]
    if not whole and len(lines) > 1:
        lines.pop()  # it may be cut off
    if not lines:
        return None
    if lines[0].lstrip().startswith(b"["):
        return _ARRAY if _is_array(head, lines, whole=whole) else None
    return _TABLE if _is_table(lines) else None


def _is_array(head: bytes, lines: list[bytes], *, whole: bool) -> bool:
    """In full a valid one; of a long one a single line, or neither the first nor the second is a value by itself."""
    if whole:
        return isinstance(_value(head), list)
    return len(lines) == 1 or all(_value(line) is None for line in lines[:2])


def _is_table(lines: list[bytes]) -> bool:
    """Rows from the beginning on, and no line that has anything to do with JSON objects."""
    separated = any(all(mark in line for line in lines[:2]) for mark in _SEPARATORS)
    foreign = not any(line.lstrip().startswith((b"{", b"[")) for line in lines)
    return len(lines) > 1 and separated and foreign and _value(lines[0]) is None


def _value(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
