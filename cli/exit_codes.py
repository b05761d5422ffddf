"""Which exit code tells what: the one table for errors, and the code of a batch that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from synthgen.batch import Batch, Progress
from synthgen.errors import BadInput, SynthgenError
from synthgen.states import BatchState

ALL_SUCCEEDED: Final = 0
TROUBLE: Final = 1
BAD_INPUT: Final = 2
SOME_FAILED: Final = 3
INTERRUPTED: Final = 130


class Interrupted(SynthgenError):
    """The user stopped a command; the text says how to go on."""


class NotFinished(SynthgenError):
    """The batch is paused, or failed as a whole; the text says why and how to go on."""


EXIT_CODES: Final[Mapping[type[BaseException], int]] = {
    BadInput: BAD_INPUT,
    Interrupted: INTERRUPTED,
    KeyboardInterrupt: INTERRUPTED,
    click.Abort: INTERRUPTED,
}
"""By class, subclasses included; whatever is not here is TROUBLE."""


def exit_code_of(error: BaseException) -> int:
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), TROUBLE)


def exit_code_of_batch(progress: Progress) -> int:
    """Of a command that saw the batch to its end."""
    batch = progress.batch
    if batch.state is BatchState.FAILED:
        return TROUBLE
    return SOME_FAILED if _has_gaps(batch, progress) else ALL_SUCCEEDED


def _has_gaps(batch: Batch, progress: Progress) -> bool:
    return bool(progress.counts.failed or batch.rejected) or progress.counts.succeeded < batch.total
