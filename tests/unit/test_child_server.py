"""What a child server refuses and what it shows of a long log, without starting anything."""

from __future__ import annotations

import pytest

from synthgen.engines.child_server import ChildServer, telling
from synthgen.errors import BadInput


def test_a_command_that_cannot_be_told_its_port_is_refused() -> None:
    with pytest.raises(BadInput, match=r"write \{port\} where it belongs"):
        ChildServer(["llama-server", "-m", "model.gguf"])


def test_a_port_that_is_given_needs_no_place_in_the_command() -> None:
    assert ChildServer(["llama-server"], port=8_000).base_url == "http://127.0.0.1:8000"


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(BadInput, match="no command"):
        ChildServer([], port=8_000)


CAUSE = "ValueError: Available memory on node 0 (21.6/23.5 GiB) is less than desired (21.7 GiB)."


def test_errors_that_are_named_come_first_and_once_however_far_up_they_are() -> None:
    prefix = "(EngineCore pid=7) ERROR 11-21 05:25:10 [core.py:100] "
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    lines = [prefix + CAUSE, CAUSE, *(f"  File {n}" for n in range(40)), end, *(f"leaked {n}" for n in range(80))]
    assert telling(lines) == [CAUSE, end, *(f"  File {n}" for n in range(36, 40))]


def test_the_lines_shown_end_with_the_last_that_speaks_of_an_error() -> None:
    lines = [*(f"step {n}" for n in range(50)), "out of memory, killed", *(f"leaked {n}" for n in range(80))]
    assert telling(lines) == lines[36:51]


def test_a_warning_that_speaks_of_an_error_is_not_taken_for_one() -> None:
    lines = ["WARNING this can cause fd limit errors like `OSError: [Errno 24] Too many open files`.", CAUSE, "end"]
    assert telling(lines)[0] == CAUSE


def test_a_long_error_is_cut() -> None:
    assert [len(line) for line in telling(["OSError: " + "x" * 5_000])] == [400]


def test_without_an_error_the_last_lines_are_shown() -> None:
    assert telling(f"step {n}" for n in range(50)) == [f"step {n}" for n in range(35, 50)]


def test_a_silent_server_has_no_lines_to_show() -> None:
    assert telling([]) == []
