"""The command ``synthgen``: a table of commands that are imported only when used, and the edge where errors end.

Whatever a command raises becomes one sentence on standard error and an exit code (``exit_codes``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NoReturn

import click

import synthgen
from synthgen.errors import SynthgenError

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Run a batch": {
        "run": "Submit a file, work on it here and collect the answers.",
        "submit": "Submit a file for workers to run; prints the batch's id.",
        "worker": "Run the shards of a pool's batches until stopped.",
        "beat": "Keep time for a cluster: upkeep at regular intervals.",
    },
    "Look at batches": {
        "list": "List batches, newest first.",
        "status": "Show how far a batch is.",
        "watch": "Follow a batch until it ends.",
        "results": "Write a batch's answers in input order.",
        "show": "Show one request, its response, timings and attempts.",
        "errors": "Show what failed, grouped by cause, then row by row.",
    },
    "Change batches": {
        "pause": "Stop asking; what is in flight may finish.",
        "resume": "Go on with paused batches.",
        "cancel": "End batches early; finished rows are kept.",
        "retry": "Run failed rows again; the others stay as they are.",
        "rm": "Remove ended batches with their files.",
    },
    "Look at workers": {
        "workers": "List workers: pool, model, state, speed.",
        "pools": "List pools: their workers and their work.",
        "models": "List models: who serves them, what waits for them.",
    },
    "Look after synthgen": {
        "model": "Fetch weights once for all workers that share a folder.",
        "cache": "See or purge stored responses.",
        "db": "Upgrade, inspect or stop the database.",
        "config": "Show all settings and where each comes from.",
        "doctor": "Check every dependency and say what to do.",
    },
}
"""Every command with its help in one line; command ``x`` is ``command`` in module ``cli.x``."""

_ENDING: Final = """\
BATCH is an id, the beginning of one, a unique name, or "last".

Exit codes: 0 all succeeded, 3 finished with failed or rejected rows, 2 bad usage or input, 1 anything else,
130 interrupted."""


_SERVICES: Final = ("worker", "beat")
"""Commands that log as services do; they set up logging by themselves."""


class Commands(click.Group):
    """Imports a command's module when the command is used, and turns errors into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # Click's own, and `synthgen results … | head`
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge of the program
            _end(ctx, error)
        ctx.exit(code or 0)


@click.group(
    cls=Commands,
    epilog=_ENDING,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(synthgen.__version__, message="synthgen %(version)s")
@click.option("--debug", is_flag=True, help="Show logs, and tracebacks of errors.")
@click.pass_context
def main(ctx: click.Context, *, debug: bool) -> None:
    """Batch LLM generation: a JSONL file of requests in, exactly one answer per line out.

    Try it without a model: synthgen run questions.jsonl --engine mock
    """
    if ctx.invoked_subcommand not in _SERVICES:
        _set_up_logging(debug=debug)


_TOLD = (
    "storage.database",
    "synthgen.completion",
    "synthgen.engine",
    "synthgen.engines.lane",
    "synthgen.run_shard.given_up",
    "tasks.wiring",
)


def _set_up_logging(*, debug: bool) -> None:
    """Quiet, but for what a user has to know: what will come late, or otherwise than was asked for."""
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return
    quiet = logging.StreamHandler()
    quiet.addFilter(lambda record: record.name in _TOLD and record.exc_info is None)
    logging.basicConfig(level=logging.WARNING, format="Warning: %(message)s", handlers=[quiet])


def _end(ctx: click.Context, error: BaseException) -> NoReturn:
    """The edge of the program: a sentence, or with --debug everything."""
    from cli.exit_codes import exit_code_of

    if ctx.params.get("debug"):
        raise error
    click.echo(_sentence(ctx, error), err=True)
    ctx.exit(exit_code_of(error))


def _sentence(ctx: click.Context, error: BaseException) -> str:
    from cli.exit_codes import Interrupted

    if isinstance(error, Interrupted):
        return str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "Interrupted."
    if isinstance(error, SynthgenError):
        return f"Error: {error}"
    name = ctx.invoked_subcommand or ""
    return (
        f"Error: {type(error).__name__}: {' '.join(str(error).split())} "
        f"(unexpected; 'synthgen --debug {name} …' shows where)."
    )
