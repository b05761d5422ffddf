"""Which engines there are. A kind's module is imported when it is asked for and not before: some take seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final, cast

from synthgen.engines.base import Engine, EngineSpec
from synthgen.errors import BadInput

ENGINES: Final[Mapping[str, str]] = {
    "openai": "synthgen.engines.openai:OpenAIEngine",
    "litellm": "synthgen.engines.litellm:LiteLLMEngine",
    "mock": "synthgen.engines.mock:MockEngine",
    "vllm": "synthgen.engines.vllm:VllmEngine",
    "server": "synthgen.engines.server:ServerEngine",
}
"""Kind to ``module:Class``; each class is built from one EngineSpec."""


def make_engine(spec: EngineSpec) -> Engine:
    """The engine that ``spec`` describes, not yet started. Raises BadInput for an unknown kind or a bad option."""
    try:
        module, name = ENGINES[spec.kind].split(":")
    except KeyError:
        raise BadInput(f"Unknown engine {spec.kind!r}: use one of {', '.join(ENGINES)}.") from None
    build = cast("Callable[[EngineSpec], Engine]", getattr(import_module(module), name))
    return build(spec)
