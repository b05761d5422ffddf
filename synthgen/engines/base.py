"""The one small protocol that every engine keeps, and what an engine is told at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from synthgen.request import Request
from synthgen.response import Reply
from synthgen.workers import ANY_MODEL

GPU_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Where a process finds which GPUs it may use."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine, where, and how hard to drive it. Not part of what makes two batches the same.

    ``input_price`` and ``output_price`` are US dollars per million tokens, for engines that know no prices.
    """

    kind: str
    """``openai``, ``litellm``, ``mock``, or with a server of our own ``vllm``, ``server``."""
    model: str | None = None
    """For requests that name none."""
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    provider: str | None = None
    """Name in cache keys instead of the URL's host, so that equal servers can share."""
    in_flight: int | None = None
    """None: what the engine says is good for it."""
    timeout: float = 600.0
    """Seconds for one try; ``inf``: as long as it takes."""
    input_price: float | None = None
    output_price: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    """``--engine-option NAME=VALUE``: what only this engine knows."""
    command: tuple[str, ...] = ()
    """``server``: what opens the server; ``{port}`` stands for its port."""
    arguments: tuple[str, ...] = ()
    """``vllm``: passed on untouched."""
    python: str | None = None
    """``vllm``: the interpreter whose environment has vLLM; None: this one."""
    models_dir: Path | None = None
    """``vllm``: where pulled weights lie (``synthgen.models``)."""
    gpus: str | None = None
    """GPUs that the server sees, such as ``0,1``; None: all."""
    start_timeout: float | None = None
    """Seconds until a server of our own must serve; None: what its engine thinks enough."""
    measure_ttft: bool = False
    """``openai``, ``vllm``, ``server``: replies are streamed, so that the times of their tokens are known."""

    @property
    def loads_model(self) -> bool:
        """``model`` is what the engine loads (a name or a folder); what requests call it, the engine says later."""
        return self.kind in ("vllm", "server")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars for one reply at this spec's prices; without prices None, or nothing where nobody sends a bill."""
        if self.input_price is None and self.output_price is None:
            return 0.0 if self.loads_model or self.kind == "mock" else None
        return (prompt_tokens * (self.input_price or 0.0) + completion_tokens * (self.output_price or 0.0)) / 1e6


class Engine(Protocol):
    """Answers one request at a time, many at once, on the event loop on which it was started.

    ``generate`` is one try: it returns a Reply or raises RetryableError (RateLimited, Unreachable), PermanentError or
    FatalError; it never retries by itself and never raises anything else.
    """

    @property
    def name(self) -> str:
        """``openai``, ``litellm``, ``mock``: goes into the output line."""

    @property
    def provider(self) -> str:
        """Who answers, for cache keys: two engines with equal providers are taken to give equal answers."""

    @property
    def in_flight(self) -> int:
        """How many requests it wants at once."""

    @property
    def models(self) -> tuple[str, ...]:
        """The model names that it serves, one at least once it is started; ``*`` where it passes every name on."""

    @property
    def version(self) -> str | None:
        """Of the software that computes the answers, where known once it is started."""

    @property
    def revision(self) -> str:
        """Of the weights and of what else decides its answers, for cache keys; empty where unknown."""

    @property
    def ready(self) -> bool:
        """Whether it can serve just now."""

    @property
    def asleep(self) -> bool:
        """Whether it has given back what the next request has to fetch again."""

    async def start(self) -> None:
        """Open what it needs. Raises FatalError when it cannot ever work (a missing key or package)."""

    async def generate(self, request: Request) -> Reply: ...

    async def health(self) -> None:
        """Raises Unreachable or FatalError with a sentence when it could not serve now. Must not cost money."""

    async def sleep(self) -> None:
        """Nobody has asked for a while: give back what the next request can fetch again."""

    def forgive(self) -> None:
        """Its deaths so far were a request's doing, and count no longer."""

    async def close(self) -> None: ...


class Unmanaged:
    """What engines say of themselves that only ask others: nothing to start, to name or to put to sleep."""

    models: tuple[str, ...] = (ANY_MODEL,)
    version: str | None = None
    revision = ""
    ready = True
    asleep = False

    async def sleep(self) -> None:
        """There is nothing to give back."""

    def forgive(self) -> None:
        """It has no deaths."""
