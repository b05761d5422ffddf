"""A file of another format is one sentence; JSON lines that are merely bad are left to be told line by line."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from storage.local_objects import LocalObjects
from storage.sources import open_source
from synthgen.errors import BadInput

ROWS = [{"prompt": f"question {number}", "custom_id": str(number)} for number in range(9)]
MANY = [{"prompt": "question " * 20, "custom_id": str(number)} for number in range(2_000)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
ARRAYS = {
    "in one line": orjson.dumps(ROWS),
    "drawn": orjson.dumps(ROWS, option=orjson.OPT_INDENT_2),
    "an element a line": b"[\n" + LINES.replace(b"}\n", b"},\n")[:-2] + b"\n]\n",
    "long in one line": orjson.dumps(MANY),
    "long and drawn": b"\n" + orjson.dumps(MANY, option=orjson.OPT_INDENT_2),
}
TABLES = {
    "commas": b"prompt,id\nhello,1\n",
    "quoted": b'"prompt","id"\n"hello, you\nthere",1\n',
    "tabs and a mark": b"\xef\xbb\xbfprompt\tid\nhello\t1\n",
    "long": b"prompt;id\n" + b"hello;1\n" * 20_000,
}
MERELY_BAD = {
    "prose": b"oops, this is no JSON\n" + LINES,
    "two lines of it": b"oops, no\nand, again\n" + LINES,
    "a list": b"[1, 2]\n" + LINES,
    "a list of objects": b'[{"prompt": "a"}]\n' + LINES,
    "a list cut off": b"[1, 2\n" + LINES,
    "a long list": orjson.dumps(MANY) + b"\n" + LINES,
    "a list cut off before many": b"[1, 2\n" + LINES * 1_000,
    "a text": b'"a, b"\n"c, d"\n',
    "one line of prose": b"hello, you\n",
    "prose of some lines": b"First, a line.\nThen another.\n",
    "a mark": b"\xef\xbb\xbf" + LINES,
    "drawn objects": orjson.dumps(ROWS[0], option=orjson.OPT_INDENT_2),
    "nothing": b"",
}


def read(folder: Path, content: bytes) -> bytes:
    (folder / "q.jsonl").write_bytes(content)
    return b"".join(open_source(str(folder / "q.jsonl"), LocalObjects(folder / "objects")).chunks())


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_is_refused_as_a_whole(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInput, match=r"q\.jsonl looks like one JSON array: give JSON lines"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES.keys())
def test_a_table_is_refused_as_a_whole(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInput, match=r"q\.jsonl looks like CSV: give JSON lines"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", MERELY_BAD.values(), ids=MERELY_BAD.keys())
def test_lines_that_are_merely_bad_are_given_on(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == content
