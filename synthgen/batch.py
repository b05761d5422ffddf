"""What a batch and its shards are, and how their numbers add up. Plain values; nothing here does I/O."""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from synthgen.errors import BadInput, InputChanged
from synthgen.request import INPUT_FIELD, LineRules, template
from synthgen.states import BatchState, ShardState


class CacheMode(StrEnum):
    """``use`` reads and writes the shared cache, ``refresh`` only writes it, ``off`` keeps a checkpoint of its own."""

    USE = "use"
    REFRESH = "refresh"
    OFF = "off"


class OnInvalid(StrEnum):
    """What rejected lines do to the batch."""

    FAIL = "fail"
    SKIP = "skip"


class Directive(StrEnum):
    """What the batch wants of a running attempt; the answer to each heartbeat."""

    GO = "go"
    PAUSE = "pause"
    CANCEL = "cancel"
    EXPIRE = "expire"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What the user asked for besides the lines; part of what makes two batches the same.

    Where the engine is and its key are not in it. Times are seconds, sizes bytes.
    """

    endpoint: str | None = None
    """Only this OpenAI path is accepted; None takes the first line's."""
    model: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Body fields for lines that do not set them."""
    prompt: str | None = None
    """Template that turns a raw row into a prompt: ``{question}`` is the row's field."""
    system: str | None = None
    on_invalid: OnInvalid = OnInvalid.FAIL
    cache: CacheMode = CacheMode.USE
    namespace: str = "default"
    cache_ttl: int | None = None
    pool: str | None = None
    """None: worked only by ``synthgen run`` processes; ``workers.AUTO``: the pool that serves its model."""
    routed_by: str | None = None
    """The model that finds the pool. Seen at submit, not wished for, so it does not make two batches different."""
    completion_window: int | None = None
    shard_requests: int = 500
    shard_bytes: int = 4_000_000
    max_line_bytes: int = 64_000_000

    def rules(self, *, engine_model: str | None = None) -> LineRules:
        """How this batch's lines become requests; ``engine_model`` serves where neither line nor batch names a model.

        Raises BadInput when the prompt template cannot be read or the endpoint is unknown.
        """
        if self.endpoint is not None and self.endpoint not in INPUT_FIELD:
            raise BadInput(f"Unknown endpoint {self.endpoint!r}: use one of {', '.join(INPUT_FIELD)}.")
        return LineRules(
            endpoint=self.endpoint,
            model=self.model or engine_model,
            defaults=self.defaults,
            system=self.system,
            render=None if self.prompt is None else template(self.prompt),
            max_bytes=self.max_line_bytes,
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of consecutive requests: bytes ``start`` to ``end`` (exclusive) of the input object.

    ``lines`` counts all physical lines of the range, ``requests`` those that run. ``marks`` gives, for repeated lines,
    the line number and its occurrence: k for the k-th sample, ``SHARED`` where equal lines share one answer.
    """

    number: int
    start: int
    end: int
    first_line: int
    lines: int
    requests: int
    marks: tuple[tuple[int, int], ...] = ()


SHARED = -1
"""The mark of a deterministic line that occurs more than once: it runs once, all get its answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One submission: an input object plus its options. Datetimes are aware and UTC."""

    id: str
    name: str
    state: BatchState
    options: BatchOptions
    fingerprint: str
    """Digest of content and options: equal for equal submissions, salted by ``--new``."""
    created_at: datetime
    input_key: str
    input_bytes: int
    input_lines: int
    """Lines that are not blank: requests plus rejected."""
    total: int
    rejected: int
    shards: int
    reason: str | None = None
    started_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    retry_codes: tuple[str, ...] | None = None
    """Error codes that the last ``retry`` runs again; None means all."""
    last_change: uuid.UUID | None = None
    """Names the last change of state, so that whoever has read the batch can tell whether there was one since."""

    def __post_init__(self) -> None:
        if self.input_lines != self.total + self.rejected:
            raise ValueError(
                f"{self.id}: {self.input_lines} lines are not {self.total} requests and {self.rejected} rejected"
            )

    @property
    def cache_namespace(self) -> str:
        """Where this batch's answers are kept: its own corner when reuse is off."""
        return self.checkpoint_namespace if self.options.cache is CacheMode.OFF else self.options.namespace

    @property
    def checkpoint_namespace(self) -> str:
        return f"batch:{self.id}"

    @property
    def can_go_on(self) -> bool:
        """Not when it is paused because its stored input is no longer what was submitted."""
        return not (self.reason or "").endswith(InputChanged.what_to_do)

    @property
    def out_of_time(self) -> bool:
        """Whether requests that never ran have the completion window to blame; if not, the batch was cancelled."""
        cancelled = self.state in (BatchState.CANCELLING, BatchState.CANCELLED)
        return self.state is BatchState.EXPIRED or (self.expires_at is not None and not cancelled)


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over finished requests. Cached ones are among the succeeded; their tokens and money are counted apart."""

    succeeded: int = 0
    failed: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    cost: float = 0.0
    saved: float = 0.0
    unpriced: int = 0
    """Answers paid for whose cost nobody knows; ``cost`` is the sum of the others."""
    unpriced_cached: int = 0
    """Cached answers of which nobody knows what they saved."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in COUNT_FIELDS))

    @property
    def finished(self) -> int:
        return self.succeeded + self.failed

    @property
    def known_cost(self) -> float | None:
        """None when answers were paid for and the cost of none is known."""
        return None if 0 < self.unpriced >= self.succeeded - self.cached else self.cost

    @property
    def known_saved(self) -> float | None:
        """None when answers came from the cache and the cost of none is known."""
        return None if 0 < self.unpriced_cached >= self.cached else self.saved


COUNT_FIELDS = tuple(f.name for f in dataclasses.fields(Counts))


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Who answers, as far as cache keys are concerned; kept with the shard, so that anyone can find its checkpoint."""

    name: str
    provider: str
    revision: str = ""
    model: str | None = None
    """What requests that name no model get."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a shard by a worker, named by its fencing token.

    ``rejected`` are line numbers to pass over; ``previous_key`` is the sealed result of an earlier round (``retry``).
    """

    batch: Batch
    shard: Shard
    token: int
    number: int
    """1 for the first try of this shard."""
    lost: int = 0
    """So many of the tries before ended with their worker: it died or fell silent. A resume forgets them."""
    rejected: frozenset[int] = frozenset()
    previous_key: str | None = None
    engine: EngineIdentity | None = None
    """That of this claim; of the attempt before, when the claim named none."""
    directive: Directive = Directive.GO
    """What the batch wanted at the moment of the claim."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is; ``total = succeeded + failed + running + pending`` at every reading."""

    batch: Batch
    counts: Counts
    running: int
    shards: Mapping[ShardState, int]
    kept: int = 0
    """Pending requests whose answers an interrupted attempt has left: at least so many are not asked again."""

    @property
    def pending(self) -> int:
        return self.batch.total - self.counts.finished - self.running

    def as_dict(self) -> dict[str, Any]:
        """The stable field names of ``status --json``; times are ISO 8601, money US dollars, null where unknown."""
        batch, counts = self.batch, self.counts
        return {
            "id": batch.id,
            "name": batch.name,
            "status": str(batch.state),
            "reason": batch.reason,
            "pool": batch.options.pool,
            "model": batch.options.model,
            "created_at": _iso(batch.created_at),
            "started_at": _iso(batch.started_at),
            "completed_at": _iso(batch.ended_at),
            "expires_at": _iso(batch.expires_at),
            "total": batch.total,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "cached": counts.cached,
            "rejected": batch.rejected,
            "running": self.running,
            "pending": self.pending,
            "kept": self.kept,
            "prompt_tokens": counts.prompt_tokens,
            "completion_tokens": counts.completion_tokens,
            "cached_prompt_tokens": counts.cached_prompt_tokens,
            "cached_completion_tokens": counts.cached_completion_tokens,
            "cost": _rounded(counts.known_cost),
            "saved": _rounded(counts.known_saved),
            "unpriced": counts.unpriced,
            "unpriced_cached": counts.unpriced_cached,
            "shards": {str(state): self.shards.get(state, 0) for state in ShardState},
        }


def new_batch_id() -> str:
    """``batch_`` and 24 random hexadecimal digits, as opaque as OpenAI's."""
    return f"batch_{secrets.token_hex(12)}"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _rounded(dollars: float | None) -> float | None:
    return None if dollars is None else round(dollars, 6)
