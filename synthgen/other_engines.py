"""Whether an engine may go on with a batch that another has begun.

Mocked text looks like answers: among a model's own nobody would find it again. To have a batch answered by two models
or servers is the user's choice, but not by mistake.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from synthgen.batch import Batch, EngineIdentity
from synthgen.errors import BadInput
from synthgen.ports import Services
from synthgen.states import BatchState

_MOCK: Final = "mock"
_GOES_ON: Final = (BatchState.IN_PROGRESS, BatchState.PAUSED)


def compare_engines(services: Services, batch: Batch, ours: EngineIdentity) -> str | None:
    """What to tell the user before ``ours`` goes on with ``batch``; None when nobody else has begun it.

    Raises BadInput when one of the two is the mock engine. An engine that has begun a part of it was compared then.
    """
    begun = services.store.engines(batch.id) if batch.state in _GOES_ON else []
    if not begun or _as_far_as_it_matters(ours, batch) in (_as_far_as_it_matters(other, batch) for other in begun):
        return None
    for other in begun:
        if (other.name == _MOCK) is not (ours.name == _MOCK):
            raise BadInput(_refusal(batch, other, ours))
    before = " and ".join(_named(other) for other in begun)
    return f"Batch {batch.id} was begun by {before}; {_named(ours)} answers the rest."


def _refusal(batch: Batch, other: EngineIdentity, ours: EngineIdentity) -> str:
    mixed = "mocked text among its answers" if ours.name == _MOCK else "answers among its mocked text"
    return (
        f"Batch {batch.id} was begun by {_named(other)}, and {_named(ours)} would put {mixed}: "
        f"go on with {_named(other)}, or run the input with --new to make another batch."
    )


def _as_far_as_it_matters(engine: EngineIdentity, batch: Batch) -> EngineIdentity:
    """The engine's own model is asked only where the lines name none."""
    return replace(engine, model=None) if batch.options.routed_by else engine


def _named(engine: EngineIdentity) -> str:
    where = "" if engine.provider == engine.name else f" at {engine.provider}"
    model = f" with {engine.model}" if engine.model else ""
    revision = f" ({engine.revision[:12]})" if engine.revision else ""
    return f"--engine {engine.name}{where}{model}{revision}"
