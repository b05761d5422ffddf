"""Commands that do the same to several batches: one that cannot be changed must not keep the others from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cli.console import say
from synthgen.batch import Batch
from synthgen.errors import ServiceUnavailable, SynthgenError
from synthgen.ports import Services


def for_each(services: Services, references: Sequence[str], act: Callable[[Services, Batch], str]) -> None:
    """``act`` returns the sentence to say. Raises the first error when all have had their turn; without its services
    nobody has one."""
    first: SynthgenError | None = None
    for reference in references:
        try:
            say(act(services, services.store.resolve(reference)))
        except ServiceUnavailable:
            if first is not None:
                say(f"Error: {first}")
            raise
        except SynthgenError as error:
            if first is not None:
                say(f"Error: {error}")
            first = first or error
    if first is not None:
        raise first
