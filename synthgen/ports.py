"""What the core needs from outside: Protocols that ``storage`` and ``tasks`` supply, and the values that cross them.

Rules for every implementation: a method is exactly one transaction; time in the database is the database's clock;
state changes are guarded by ``states.leaving``; a service that does not answer within its patience raises
ServiceUnavailable. Suites in ``tests/contract`` hold each implementation to the docstrings below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from synthgen.batch import Attempt, Batch, Counts, Directive, EngineIdentity, Progress, Shard
from synthgen.request import Rejected
from synthgen.states import BatchState, ShardState
from synthgen.workers import WorkerStatus


class RequestRow(NamedTuple):
    """What the database keeps of a finished request; a NamedTuple because millions are copied into a table.

    ``offset`` and ``length`` place its output line in the shard's result object, in bytes.
    """

    line: int
    custom_id: str
    succeeded: bool
    cached: bool
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    latency_ms: int
    attempts: int
    status_code: int | None
    error_code: str | None
    error_message: str | None
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A ``RequestRow`` with the place of its result: what ``show`` and ``errors`` read."""

    batch_id: str
    shard: int
    result_key: str
    row: RequestRow


@dataclass(frozen=True, slots=True)
class SealedResult:
    """The result object of one attempt. ``never_ran`` counts failures that were not asked because the batch ended."""

    key: str
    size: int
    digest: str
    counts: Counts
    never_ran: int = 0


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard as it stands: its range, its state, and its sealed result, where there is one.

    While a retry is under way ``result`` is that of the round before.
    """

    shard: Shard
    state: ShardState
    attempts: int
    result: SealedResult | None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failed requests of one cause: how many, and the first of them."""

    code: str
    count: int
    message: str
    line: int
    custom_id: str


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of one running attempt, with what it has finished so far."""

    token: int
    counts: Counts


class BatchStore(Protocol):
    """Batches, shards, request rows and rejected lines: the truth."""

    def identity(self) -> str:
        """Which database this is: it stays, and no other has it, not even one restored from a dump of this."""

    def create(self, batch: Batch, shards: Iterable[Shard], rejected: Iterable[Rejected]) -> Batch:
        """Store a new batch with all its shards (``pending``) and rejected lines, all or nothing.

        Both are streamed, and read once more when the transaction has to be tried again: no iterators, please.
        Returns the batch that now stands for this fingerprint: an older one, when it is unfinished and has the same.
        """

    def find_unfinished(self, fingerprint: str) -> Batch | None:
        """The batch with this fingerprint that has not ended, or None."""

    def has_unfinished(self, input_bytes: int) -> bool:
        """Whether any batch that has not ended has an input of exactly this many bytes."""

    def get(self, batch_id: str) -> Batch:
        """Raises NotFound."""

    def resolve(self, reference: str) -> Batch:
        """The batch meant by an id, a unique beginning of one, a unique name, or ``last``. Raises NotFound."""

    def list_batches(self, *, states: Iterable[BatchState] = tuple(BatchState), limit: int = 50) -> list[Progress]:
        """Newest first."""

    def batches(self, states: Iterable[BatchState]) -> Iterator[Batch]:
        """All in one of these states, oldest first, streamed, without the sums that ``Progress`` takes.

        Each page is a reading of its own.
        """

    def is_overdue(self, batch_id: str) -> bool:
        """Whether its completion window is over. Raises NotFound."""

    def progress(self, batch_id: str) -> Progress:
        """One consistent reading; running attempts count as of their last beat. Raises NotFound."""

    def rejected(self, batch_id: str, *, first: int = 1, last: int | None = None) -> Iterator[Rejected]:
        """Those on lines ``first`` to ``last`` (both included; None: to the end), in line order, streamed."""

    def shards(self, batch_id: str, *, first: int = 0) -> Iterator[ShardStatus]:
        """From the shard with number ``first`` on, in input order, streamed, without ``marks``.

        Each page is a reading of its own: later shards may be newer.
        """

    def find_request(self, batch_id: str, *, line: int | None = None, custom_id: str | None = None) -> StoredRequest:
        """The finished request with this line number or custom_id. Raises NotFound."""

    def failures(self, batch_id: str, *, code: str | None = None, limit: int | None = None) -> Iterator[StoredRequest]:
        """Failed requests in line order, streamed."""

    def error_groups(self, batch_id: str) -> list[ErrorGroup]:
        """By cause, commonest first: rows of sealed shards, and the requests of cancelled shards under the code of
        ``response.NEVER_RAN`` that fits the batch's state (their message and line, custom_id empty)."""

    def move(self, batch_id: str, to: BatchState, *, reason: str | None = None, since: Batch | None = None) -> Batch:
        """Change the batch's state and set ``reason`` and the state's time stamp. Raises NotFound or StateConflict.

        With ``since`` only while nobody has changed its state since it was read as that: a batch may be ended and
        retried in between, and then be in the same state with other shards open.
        Pausing makes its queued shards pending: their messages will find nothing to claim, so they need new ones.
        Going on forgets how many workers its shards have lost.
        """

    def assign_pool(self, batch_id: str, pool: str) -> str | None:
        """Send a batch whose pool is ``workers.AUTO``, and that has not ended, to this pool.

        Returns the pool that it has now: a choice that was made before stands. Raises NotFound.
        """

    def all_ended(self, batch_id: str) -> bool:
        """Whether every shard is done or cancelled; so it is for a batch that does not exist."""

    def cancel_unstarted(self, batch_id: str) -> int:
        """Cancel the pending and queued shards that no attempt has touched; how many.

        None of a batch that is neither cancelling nor, in progress, past its window: it may have been retried.
        """

    def give_up(self, attempt: Attempt) -> None:
        """Cancel a shard that can be neither run nor closed (running → cancelled), without the attempt's answers.

        Its requests count as those of ``cancel_unstarted``; nothing happens when the lease is lost already.
        """

    def reset_failed(self, batch_id: str, codes: Sequence[str] | None) -> int:
        """Make an ended batch run its failed requests (of these error codes; None: all) again.

        In one transaction: shards with such failures, and those that were cancelled untouched where a code of
        ``response.NEVER_RAN`` is among ``codes``, become pending with ``attempts`` 0 and keep their result object;
        their counts keep only what stays; the batch becomes ``in_progress`` with ``retry_codes`` set and no
        completion window (one as long as the first, when it had expired and what never ran stays so). Returns how many
        requests will run; 0 changes nothing. Raises NotFound, or StateConflict when the batch has not ended.
        """

    def delete(self, batch_id: str) -> None:
        """Remove an ended batch and all its rows. Raises NotFound or StateConflict."""

    def queue_window(self, batch_id: str, *, spare: int) -> list[int]:
        """Turn pending shards of an in_progress batch to queued, lowest first, until ``spare`` + running are queued.

        Returns the numbers to send after commit.
        """

    def claim(
        self, batch_id: str, *, number: int | None, owner: str, lease: float, engine: EngineIdentity | None = None
    ) -> Attempt | None:
        """Take a pending or queued shard (None: the lowest that is free): new token, lease of ``lease`` seconds.

        None when there is nothing to take, or when the batch is neither in_progress nor cancelling. The attempt's
        directive says whether the batch wants answers (GO) or only wants the shard closed (CANCEL, EXPIRE). ``engine``
        is kept with the shard (as JSON); without one the shard keeps the last attempt's, and the attempt returns it.
        """

    def heartbeat(self, beats: Sequence[Beat], *, lease: float) -> Mapping[int, Directive]:
        """Extend the leases and store the counts; by token what each batch wants now (LOST: the token is gone)."""

    def seal(self, attempt: Attempt, result: SealedResult, rows: Iterable[RequestRow]) -> None:
        """Replace the shard's request rows, set counts and result, turn it done: once per token, safe to repeat.

        Raises LostLease when the token is no longer the shard's.
        """

    def release(self, attempt: Attempt) -> None:
        """Give the shard back (running → pending); nothing happens when the lease is lost already."""

    def rescue(self, *, owners: Sequence[str] = ()) -> list[str]:
        """Running shards whose lease ran out or whose owner is in ``owners`` become pending; the batches touched.

        Each has then lost a worker once more, which its next attempt is told.
        For some seconds after an outage of the store a lease that ran out means nothing: nobody could renew it.
        """

    def owners(self) -> list[str]:
        """Who holds running shards now."""

    def engines(self, batch_id: str) -> list[EngineIdentity]:
        """The engines that are kept with shards of the batch, each once; none for a batch that does not exist."""

    def resend(self, *, older_than: float, pool: str | None = None) -> list[tuple[str, int]]:
        """Queued shards of in_progress batches (of this pool; None: of all) whose message is older than so many s.

        They count as sent anew.
        """

    def take_turn(self, name: str, *, every: float) -> bool:
        """True for one caller per ``every`` seconds over all processes: who may run the periodic job ``name`` now."""


class WorkerRegistry(Protocol):
    """Who works where, as of their last signs of life."""

    def beat(self, status: WorkerStatus) -> None:
        """Store the status of a worker; ``beat_at`` becomes now, ``started_at`` stays that of the first beat."""

    def leave(self, worker_id: str) -> None:
        """Forget a worker that has ended in good order."""

    def workers(self, *, silent_for: float) -> list[WorkerStatus]:
        """Those whose last beat is at most so many seconds old, by pool and start.

        Failed ones are shown for ``FAILED_SHOWN`` seconds, so that somebody sees why; the others are forgotten.
        """


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One stored answer. ``key`` is 32 bytes; ``body`` the provider's JSON on one line; ``cost`` in US dollars."""

    key: bytes
    namespace: str
    model: str
    body: bytes
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    ttl: int | None = None
    """Seconds from when it is stored; None keeps it."""
    origin: int = 0
    """Which request of which batch paid for it (``answers.origin``, 63 bits): going on after a crash, its own
    answer counts as paid, not as cached."""
    attempts: int = 1
    latency_ms: int = 0
    status_code: int = 200
    request_id: str | None = None
    engine: str = ""
    """Which software with which weights made it (``response.engine_label``)."""
    ttft_ms: float | None = None
    itl_ms: float | None = None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Sums per namespace and model; ``size`` is stored (compressed) bytes."""

    namespace: str
    model: str
    entries: int
    size: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    oldest: datetime
    newest: datetime


class ResponseCache(Protocol):
    """Answers by the hash of their question; also the checkpoint of running shards."""

    def lookup(self, keys: Sequence[bytes], *, not_before: datetime | None = None) -> dict[bytes, CacheEntry]:
        """The entries that exist, have not outlived their TTL, and were stored at ``not_before`` or later."""

    def put(self, entries: Sequence[CacheEntry], *, replace_before: datetime | None = None) -> None:
        """Store answers. An existing entry stays, unless it is expired or was stored before ``replace_before``."""

    def reserve(self, keys: Sequence[bytes], *, owner: int, lease: float) -> set[bytes]:
        """Announce that ``owner`` (a token) is about to ask these; those that nobody else had announced before."""

    def unreserve(self, *, owner: int) -> None:
        """Take back all announcements of ``owner``."""

    def purge(self, *, namespace: str | None = None, model: str | None = None, older_than: float | None = None) -> int:
        """Remove the entries that match all that is given (age in seconds); how many."""

    def shrink(self, *, max_bytes: int | None) -> int:
        """Remove expired entries and old announcements, then the oldest until ``max_bytes`` are left; how many.

        What was stored since the first of the unfinished batches began stays: it may be the checkpoint of one of them.
        """

    def stats(self) -> list[CacheStats]:
        """Largest first."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """``modified`` is aware and by the store's clock."""

    key: str
    size: int
    modified: datetime


class ObjectWriter(Protocol):
    """A streamed upload: visible under its key after ``commit`` and never in part."""

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class ObjectStore(Protocol):
    """Objects under keys such as ``batches/<id>/input.jsonl``. A missing key raises NotFound."""

    def put(self, key: str, data: bytes) -> None:
        """Whole or not at all, and durable on return."""

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive; None: to the end)."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces of bounded size."""

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Leaving the block without ``commit`` aborts."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key begins with ``prefix``, in key order, streamed."""

    def delete(self, keys: Iterable[str]) -> None:
        """Missing ones are passed over."""

    def sweep_uploads(self, *, older_than: float) -> int:
        """Remove unfinished uploads begun more than so many seconds ago; how many."""

    def url(self, key: str) -> str:
        """Where a person finds the object: a path or an ``s3://`` address."""


class Source(Protocol):
    """One input of a submission, already opened and decompressed."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> int | None:
        """Bytes that ``chunks`` will give, where known beforehand."""

    @property
    def rereadable(self) -> bool:
        """Whether ``chunks`` may be called again."""

    def chunks(self) -> Iterator[bytes]:
        """The content. Raises BadInput when it cannot be read."""

    def copy_to(self, key: str) -> bool:
        """Copy to ``key`` inside the object store, not sending the bytes through here; False where that is impossible.

        Raises BadInput when the content is no longer what ``chunks`` gave.
        """


class Dispatcher(Protocol):
    """Tells workers that shards are ready. A message is a hint: losing or doubling one costs time, never data."""

    def send(self, pool: str, batch_id: str, numbers: Sequence[int]) -> None:
        """Raises ServiceUnavailable; what was not sent is sent by upkeep."""


class Clock(Protocol):
    def now(self) -> datetime:
        """Aware, UTC."""

    def monotonic(self) -> float:
        """Seconds; only differences mean something."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds that use cases need; a part of ``Settings``."""

    lease: float = 20.0
    heartbeat: float = 2.0
    checkpoint: float = 0.5
    grace: float = 20.0
    """What requests in flight get to finish when a worker stops or a batch is paused."""
    resend_after: float = 60.0
    orphan_age: float = 86_400.0
    """``math.inf``: nothing is an orphan, nothing is looked for."""
    window: int = 8
    """Shards of a batch waiting in the queue beyond as many as are running."""
    cache_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What a use case works with: its first argument."""

    store: BatchStore
    cache: ResponseCache
    objects: ObjectStore
    registry: WorkerRegistry
    dispatcher: Dispatcher
    clock: Clock
    limits: Limits = field(default_factory=Limits)
    owner: str = ""
    """This process, for leases: see ``synthgen.owner``."""


Notify = Callable[[str, int, int | None], None]
"""Progress of a long step: its name, units done, units in all where known."""


def say_nothing(step: str, done: int, total: int | None) -> None:
    """For callers that show no progress."""
