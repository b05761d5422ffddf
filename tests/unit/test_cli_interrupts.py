"""Ctrl-C once and twice."""

from __future__ import annotations

import os
import signal
from threading import Event

import pytest

from cli.interrupts import Interrupts


class Left(BaseException):
    """In place of the process's end."""


def test_the_second_interrupt_says_how_this_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bytes] = []

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "write", lambda _, text: said.append(text))
    monkeypatch.setattr(os, "_exit", leave)
    stopping = Event()
    with Interrupts(stopping, grace=20, go_on="run 'synthgen run --batch batch_1'") as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert (stopping.is_set(), said) == (True, [])
        assert "up to 20 s" in (interrupts.note() or "")
        with pytest.raises(Left, match="130"):
            signal.raise_signal(signal.SIGINT)
    assert b"To go on, run 'synthgen run --batch batch_1'." in said[0]
