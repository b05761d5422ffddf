"""The command table, lazy imports, and the edge where errors become sentences and exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner

from cli.exit_codes import Interrupted, exit_code_of
from cli.main import SECTIONS, Commands, main
from synthgen import __version__
from synthgen.errors import BadInput, BadSetting, InvalidLines, NotFound, ServiceUnavailable, StateConflict

NAMES = [name for section in SECTIONS.values() for name in section]
HEAVY = ("boto3", "celery", "kombu", "sqlalchemy", "litellm", "pydantic", "aiohttp", "rich")


def loaded_by(*arguments: str) -> set[str]:
    """Which of the heavy modules a real process has loaded after this command."""
    program = (
        "import sys\n"
        "from cli.main import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        f"sys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by("--help") == set()


def test_the_help_of_run_loads_no_service_and_no_engine() -> None:
    assert loaded_by("run", "--help") <= {"pydantic", "rich"}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_that_agrees_with_the_table(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0, done.output
    [section] = [section for section in SECTIONS.values() if name in section]
    assert section[name] in done.stdout


@pytest.mark.parametrize(
    "words",
    ["cache stats", "cache purge", "db upgrade", "db status", "db stop"],
    ids=lambda words: words.replace(" ", "-"),
)
def test_commands_of_groups_have_help(words: str) -> None:
    done = CliRunner().invoke(main, [*words.split(), "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.stdout


def test_help_lists_every_command_once() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    first_words = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()]
    assert [word for word in first_words if word in NAMES] == NAMES


def test_version_is_the_package_s() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"synthgen {__version__}\n"


def test_an_unknown_command_is_bad_usage() -> None:
    done = CliRunner().invoke(main, ["rum"])
    assert done.exit_code == 2
    assert "rum" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("x"), 2),
        (BadSetting("x"), 2),
        (InvalidLines((), 3), 2),
        (NotFound("x"), 1),
        (StateConflict("a", "b", "c"), 1),
        (ServiceUnavailable("x"), 1),
        (ValueError("x"), 1),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def ending(error: BaseException | None = None, code: int | None = None) -> click.Group:
    """The real edge around a command that does as the test says."""

    def act() -> int | None:
        if error is not None:
            raise error
        return code

    group = Commands(name="synthgen", params=[click.Option(["--debug"], is_flag=True)], callback=lambda debug: None)
    get: Callable[[click.Context, str], click.Command] = lambda ctx, name: click.Command(name, callback=act)  # noqa: E731
    group.get_command = get  # type: ignore[method-assign]
    return group


def test_an_error_is_one_sentence_and_never_a_traceback() -> None:
    done = CliRunner().invoke(ending(NotFound("There is no batch 'x'.")), ["status"])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "Error: There is no batch 'x'.\n")


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more() -> None:
    done = CliRunner().invoke(ending(ZeroDivisionError("by\nzero")), ["status"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "ZeroDivisionError: by zero" in done.stderr
    assert "--debug" in done.stderr


def test_debug_lets_the_error_through() -> None:
    done = CliRunner().invoke(ending(ZeroDivisionError("by zero")), ["--debug", "status"])
    assert isinstance(done.exception, ZeroDivisionError)


def test_an_interrupt_says_how_to_go_on_and_exits_with_130() -> None:
    done = CliRunner().invoke(ending(Interrupted("Stopped. Run it again.")), ["run"])
    assert (done.exit_code, done.stderr) == (130, "Stopped. Run it again.\n")


@pytest.mark.parametrize("code", [None, 0, 3])
def test_what_a_command_returns_is_the_exit_code(code: int | None) -> None:
    assert CliRunner().invoke(ending(code=code), ["run"]).exit_code == (code or 0)


def test_a_terminal_is_told_when_the_engine_is_started_again_and_spared_its_log() -> None:
    program = (
        "import logging\n"
        "from cli.main import _set_up_logging\n"
        "_set_up_logging(debug=False)\n"
        "engine, lane = logging.getLogger('synthgen.engine'), logging.getLogger('synthgen.engines.lane')\n"
        "engine.info('[vllm] a line of its log')\n"
        "engine.error('The vllm server ended with code 1; it is started again in 1 s.')\n"
        "lane.error('a bug', exc_info=ValueError('its traceback'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "Warning: The vllm server ended with code 1; it is started again in 1 s.\n"
