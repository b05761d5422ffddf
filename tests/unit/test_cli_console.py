"""What reaches standard output: all of it in a pipe, what matters most on a narrow terminal, colours where wanted."""

from __future__ import annotations

import sys

import pytest

from cli import console
from cli.console import put_explained, put_table, styled

HEADS = ("ID", "NAME", "STATE", "AGE")
ROWS = [("batch_1", "questions", "completed", "3 min")]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes standard output a terminal of so many columns."""
    return lambda columns: monkeypatch.setattr(console, "stdout_width", lambda: columns)


def test_without_colours_text_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.console, "no_color", True)
    assert styled("ok", fg="green") == "ok"
    monkeypatch.setattr(console.console, "no_color", False)
    assert styled("ok", fg="green") == "\x1b[32mok\x1b[0m"


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (sys.maxsize, ["ID", "NAME", "STATE", "AGE"]),
        (36, ["ID", "NAME", "STATE", "AGE"]),
        (35, ["ID", "NAME", "STATE"]),
        (20, ["ID", "STATE"]),
    ],
)
def test_a_narrow_terminal_loses_the_least_important_columns(
    wide: object, capsys: pytest.CaptureFixture[str], columns: int, heads: list[str]
) -> None:
    wide(columns)  # type: ignore[operator]
    put_table(HEADS, ROWS, drop=(3, 1))
    head, row = capsys.readouterr().out.splitlines()
    assert (head.split(), "completed" in row) == (heads, True)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (sys.maxsize, ["home  /a   Where all is kept that this machine has."]),
        (40, ["home  /a   Where all is kept that this", "           machine has."]),
        (32, ["home  /a", "    Where all is kept that this", "    machine has."]),
    ],
)
def test_prose_is_wrapped_and_never_cut(
    wide: object, capsys: pytest.CaptureFixture[str], columns: int, shown: list[str]
) -> None:
    wide(columns)  # type: ignore[operator]
    put_explained(("SET", "VAL", "MEANING"), [("home", "/a", "Where all is kept that this machine has.")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-len(shown) :] == shown


def test_a_long_value_is_shown_whole(wide: object, capsys: pytest.CaptureFixture[str]) -> None:
    wide(60)  # type: ignore[operator]
    put_explained(("SET", "VAL", "MEANING"), [("url", "x" * 90, "Where."), ("a", "b", "What.")])
    shown = capsys.readouterr().out
    assert "x" * 90 in shown
    assert "a    b" in shown
