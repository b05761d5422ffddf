"""Everything that a use case works with, in memory, and an engine that does as the test says behind a real lane."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from synthgen.batch import Batch, BatchOptions, EngineIdentity
from synthgen.engines.asking import Asking
from synthgen.errors import FatalError, PermanentError, RetryableError
from synthgen.keeper import Keeper
from synthgen.ports import CacheEntry, Limits, Services
from synthgen.request import Request
from synthgen.response import Reply
from synthgen.results import Which, stream_results
from synthgen.run_shard import Worker, run_shard
from synthgen.states import ShardState
from synthgen.submit import Submission, submit
from tests.fakes.batch_store import FakeBatchStore
from tests.fakes.clock import FakeClock
from tests.fakes.dispatcher import FakeDispatcher
from tests.fakes.object_store import FakeObjects
from tests.fakes.response_cache import FakeResponseCache
from tests.fakes.scripted_engine import PATIENCE, Answer, Gate, Lanes, ScriptedEngine
from tests.fakes.worker_registry import FakeWorkerRegistry


class MemorySource:
    """``Source`` over chunks in memory; with ``inside`` it can be copied within that object store."""

    def __init__(
        self,
        content: bytes | Sequence[bytes],
        *,
        name: str = "memory",
        inside: FakeObjects | None = None,
        rereadable: bool = True,
        sized: bool = True,
    ) -> None:
        self.name = name
        self.pieces = [content] if isinstance(content, bytes) else list(content)
        self.size = sum(map(len, self.pieces)) if sized else None
        self.rereadable = rereadable
        self.readings = 0
        self._inside = inside

    def chunks(self) -> Iterator[bytes]:
        self.readings += 1
        yield from self.pieces

    def copy_to(self, key: str) -> bool:
        if self._inside is None:
            return False
        self._inside.put(key, b"".join(self.pieces))
        return True


class WatchedCache(FakeResponseCache):
    """Tells a waiting test when it has been looked into and when answers have been stored."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self._changed = threading.Condition()
        self.entries: list[CacheEntry] = []
        """Everything that was ever put."""
        self._lookups = 0
        self._announcements = 0

    def lookup(self, keys: Sequence[bytes], **options: Any) -> dict[bytes, CacheEntry]:
        with self._changed:
            self._lookups += 1
            self._changed.notify_all()
        return super().lookup(keys, **options)

    def reserve(self, keys: Sequence[bytes], **options: Any) -> set[bytes]:
        ours = super().reserve(keys, **options)
        with self._changed:
            self._announcements += 1
            self._changed.notify_all()
        return ours

    def put(self, entries: Sequence[CacheEntry], **options: Any) -> None:
        super().put(entries, **options)
        with self._changed:
            self.entries.extend(entries)
            self._changed.notify_all()

    def wait_for_lookups(self, count: int) -> None:
        """So many more from now on."""
        with self._changed:
            enough = self._lookups + count
            assert self._changed.wait_for(lambda: self._lookups >= enough, PATIENCE)

    def wait_for_announcements(self, count: int) -> None:
        """So many more from now on."""
        with self._changed:
            enough = self._announcements + count
            assert self._changed.wait_for(lambda: self._announcements >= enough, PATIENCE)

    def wait_for_entries(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.entries) >= count, PATIENCE)


def echo(request: Request, _: int) -> Reply:
    """Repeats what was asked; two tokens in, three out, half a dollar."""
    asked = request.body["messages"][-1]["content"] if "messages" in request.body else str(request.body)
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": f"re: {asked}"}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
    }
    return Reply(orjson.dumps(body), 2, 3, 0.5, request_id=f"req-{request.custom_id}")


def gated(gate: Gate, custom_id: str) -> Answer:
    """Echoes; only this one waits for the gate."""
    return lambda request, number: gate.reply() if request.custom_id == custom_id else echo(request, number)


def failing(errors: Mapping[str, Exception]) -> Answer:
    """Echoes, save where an error is given for the custom_id."""
    return lambda request, number: errors.get(request.custom_id) or echo(request, number)


WRONG_KEY = FatalError("The key is wrong: set OPENAI_API_KEY.", code="invalid_api_key", status_code=401)
REFUSED = PermanentError("Too long.", code="context_length_exceeded", status_code=400, body=b'{"error":{}}')
BROKEN = RetryableError("It broke.", code="server_error", status_code=500, body=b'{"error":{}}')


class Killed(BaseException):
    """The process ends here: no handler of ours runs."""


class Background:
    """A function on a thread of its own; ``join`` gives back what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._function()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever joins
            self._error = error

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._outcome


class Workshop:
    """Services in memory, one engine, one worker. ``close`` ends the lanes' threads."""

    def __init__(self, answer: Answer = echo, *, in_flight: int = 4, **limits: Any) -> None:
        self.clock = FakeClock()
        self.store = FakeBatchStore(self.clock)
        self.cache = WatchedCache(self.clock)
        self.objects = FakeObjects()
        self.dispatcher = FakeDispatcher()
        self.limits = Limits(**{"checkpoint": 0.005, "grace": PATIENCE, **limits})
        self.services = Services(
            store=self.store,
            cache=self.cache,
            objects=self.objects,
            registry=FakeWorkerRegistry(self.clock),
            dispatcher=self.dispatcher,
            clock=self.clock,
            limits=self.limits,
            owner="owner-1",
        )
        self._lanes = Lanes()
        self.engine = ScriptedEngine(answer)
        self._in_flight = in_flight
        self._stopped = threading.Event()
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            self._worker = self.another_worker(self.engine)
        return self._worker

    def another_worker(self, engine: ScriptedEngine, **identity: Any) -> Worker:
        """Its keeper beats only when the test says so."""
        who = EngineIdentity(**{"name": engine.name, "provider": engine.provider, **identity})
        lane = self._lanes(engine, in_flight=self._in_flight, attempts=1)
        ask = lane.ask

        def watched(requests: Sequence[Request]) -> Asking:
            asking = ask(requests)
            stop = asking.stop

            def stopping() -> None:
                stop()
                self._stopped.set()

            asking.stop = stopping  # type: ignore[method-assign]
            return asking

        lane.ask = watched  # type: ignore[method-assign]
        return Worker(lane, Keeper(self.store, self.limits), who)

    def close(self) -> None:
        self._lanes.close()

    # ---- what tests do

    def submit(self, rows: bytes | Iterable[Any], *, new: bool = False, **options: Any) -> Submission:
        content = rows if isinstance(rows, bytes) else jsonl(rows)
        values = {"model": "m", **options}
        return submit(self.services, [MemorySource(content)], BatchOptions(**values), name="questions", new=new)

    def submitted(self, rows: bytes | Iterable[Any], **options: Any) -> Batch:
        return self.submit(rows, **options).batch

    def run(self, batch: Batch, *, worker: Worker | None = None) -> Batch:
        """Run shards until there is none to claim; the batch as it is then."""
        while run_shard(self.services, worker or self.worker, batch.id):
            pass
        return self.store.get(batch.id)

    def start(self, batch: Batch, *, worker: Worker | None = None) -> Background:
        """Run one shard on a thread."""
        chosen = worker or self.worker
        return Background(lambda: run_shard(self.services, chosen, batch.id))

    def wait_until_stopped(self) -> None:
        """Until a lane was told to send no more: only then may a test let go what is in flight."""
        assert self._stopped.wait(PATIENCE)

    def results(self, batch: Batch, which: Which = Which.ALL) -> list[dict[str, Any]]:
        pieces = stream_results(self.services, batch.id, which=which)
        return [orjson.loads(line) for piece in pieces for line in piece.splitlines()]

    def progress(self, batch: Batch) -> dict[str, Any]:
        return self.store.progress(batch.id).as_dict()

    def shard_states(self, batch: Batch) -> list[ShardState]:
        return [status.state for status in self.store.shards(batch.id)]

    @property
    def asked(self) -> list[str]:
        """The custom_ids that the engine was asked, in order."""
        return [custom_id for custom_id, _ in self.engine.asked]


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(row + b"\n" if isinstance(row, bytes) else orjson.dumps(row) + b"\n" for row in rows)


def ids(results: Iterable[Mapping[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in results]


def error_codes(results: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """In our own object; None for a success."""
    return [line["synthgen"].get("error_code") for line in results]


def questions(count: int, *, start: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Simple lines that all ask something else."""
    return [{"prompt": f"question {number}", **fields} for number in range(start, start + count)]
