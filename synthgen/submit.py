"""Turns input into a batch in one streaming pass: check, hash, store, cut; then one transaction makes it visible.

Memory grows by about 25 bytes a line (two indexes of repeats), by up to 10 more where lines repeat, and by nothing
else. A submit that is killed leaves an object that no row points at; upkeep removes it.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from typing import IO, Self

import orjson

from synthgen.batch import Batch, BatchOptions, OnInvalid, Shard, new_batch_id
from synthgen.completion import fill_window
from synthgen.errors import BadInput, InvalidLines, StateConflict
from synthgen.joined import JoinedSources
from synthgen.ports import Notify, ObjectWriter, Services, Source, say_nothing
from synthgen.request import CHAT, LineRules, Rejected, Request, check_system, parse_line
from synthgen.sharding import Marks, RepeatIndex, ShardCutter, id_digest, input_key, mark_repeats, split_lines
from synthgen.states import BatchState

_SHOWN = 20
_COMPARABLE = 9
"""Bytes of a request's key that the index of repeats keeps."""


@dataclass(frozen=True, slots=True)
class Submission:
    """The batch that stands for the input now; ``attached`` when it was there already."""

    batch: Batch
    attached: bool


def submit(
    services: Services,
    sources: Sequence[Source],
    options: BatchOptions,
    *,
    name: str,
    new: bool = False,
    notify: Notify = say_nothing,
    look_at: Callable[[Batch], None] = lambda _: None,
) -> Submission:
    """Store the lines of all sources, one after another, as one batch and queue its first shards.

    The same content with the same options attaches to an unfinished batch, unless ``new``; ``look_at`` sees that batch
    before it goes on, and may raise. Raises InvalidLines under the policy ``fail``, BadInput when there is nothing to
    run, StateConflict when the same is just being cancelled; then nothing is stored.
    """
    options.rules()  # a bad template is told before anything is read
    earlier = None if new else _find_before_reading(services, sources, options, notify)
    if earlier is not None:
        look_at(earlier)
        return _attach(services, earlier)
    batch_id = new_batch_id()
    with _Intake(services, batch_id, options, sources) as intake:
        intake.read(notify)
        batch = intake.store(name, salt=batch_id if new else "")
    if batch.id != batch_id:
        look_at(batch)
        return _attach(services, batch)
    fill_window(services, batch)
    return Submission(batch, attached=False)


def _attach(services: Services, batch: Batch) -> Submission:
    """Go on with an unfinished batch: the user who submits again wants it to run, so a pause ends."""
    if batch.state is BatchState.CANCELLING:
        present = f"{batch.state}; wait until it has ended, or use --new to make another"
        raise StateConflict(batch.id, present, BatchState.IN_PROGRESS)
    if batch.state is BatchState.PAUSED:
        batch = services.store.move(batch.id, BatchState.IN_PROGRESS)
    fill_window(services, batch)
    return Submission(batch, attached=True)


def _find_before_reading(
    services: Services, sources: Sequence[Source], options: BatchOptions, notify: Notify
) -> Batch | None:
    """An unfinished batch of the same content, found by hashing alone; tried only where one of the same size exists."""
    sizes = [source.size if source.rereadable else None for source in sources]
    total = sum(size or 0 for size in sizes)
    if None in sizes or not any(services.store.has_unfinished(total + extra) for extra in range(len(sources))):
        return None
    content, done = blake2b(digest_size=32), 0
    for chunk in JoinedSources(sources).chunks():
        content.update(chunk)
        done += len(chunk)
        notify("comparing", done, total)
    return services.store.find_unfinished(fingerprint(content.digest(), options, salt=""))


def fingerprint(content: bytes, options: BatchOptions, *, salt: str) -> str:
    """What makes two batches the same: the bytes of the input and the options as the user gave them."""
    asked = {name: value for name, value in asdict(options).items() if name != "routed_by"}
    wanted = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    return blake2b(content + wanted + salt.encode(), digest_size=32).hexdigest()


class _Intake:
    """One pass over the input. Leaving the block before ``store`` removes what was uploaded."""

    def __init__(self, services: Services, batch_id: str, options: BatchOptions, sources: Sequence[Source]) -> None:
        self._services = services
        self._sources = sources
        self._joined = JoinedSources(sources)
        self._batch_id = batch_id
        self._asked = options
        self._rules: LineRules = options.rules()
        self._content = blake2b(digest_size=32)
        self._cutter = ShardCutter(max_requests=options.shard_requests, max_bytes=options.shard_bytes)
        self._ids = RepeatIndex()
        self._questions = {True: RepeatIndex(), False: RepeatIndex()}
        shown_only = options.on_invalid is OnInvalid.FAIL
        self._rejected = _RejectedSpool(self._joined, at_most=_SHOWN if shown_only else None)
        self._requests = 0
        self._model: str | None = options.model
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()
        self._rejected.close()

    def read(self, notify: Notify) -> None:
        """Check, hash and cut all lines while they are uploaded. Raises InvalidLines or BadInput."""
        sources = self._sources
        size = sum(source.size or 0 for source in sources) if all(s.size is not None for s in sources) else None
        key = input_key(self._batch_id)
        if len(sources) == 1 and sources[0].copy_to(key):
            self._cleanup.callback(self._services.objects.delete, [key])
            self._check(self._services.objects.stream(key), None, size, notify)
            self._judge()
            return
        with self._services.objects.writer(key) as writer:
            self._check(self._joined.chunks(), writer, size, notify)
            self._judge()
            writer.commit()
        self._cleanup.callback(self._services.objects.delete, [key])

    def store(self, name: str, *, salt: str) -> Batch:
        """One transaction: batch, shards, rejected lines."""
        shards = self._cutter.finish()
        options = replace(self._asked, endpoint=self._rules.endpoint or CHAT, routed_by=self._model)
        now = self._services.clock.now()
        batch = Batch(
            id=self._batch_id,
            name=name,
            state=BatchState.IN_PROGRESS,
            options=options,
            fingerprint=fingerprint(self._content.digest(), self._asked, salt=salt),
            created_at=now,
            expires_at=_after(now, options.completion_window),
            input_key=input_key(self._batch_id),
            input_bytes=self._cutter.position,
            input_lines=self._requests + self._rejected.count,
            total=self._requests,
            rejected=self._rejected.count,
            shards=len(shards),
        )
        upload = self._cleanup.pop_all()  # whatever breaks off, perhaps it was stored; if not, upkeep removes the input
        stored = self._services.store.create(batch, self._marked(shards), self._rejected)
        if stored.id != self._batch_id:
            upload.close()
        return stored

    def _check(self, chunks: Iterable[bytes], writer: ObjectWriter | None, size: int | None, notify: Notify) -> None:
        for lines in split_lines(self._tee(chunks, writer), max_bytes=self._rules.max_bytes):
            for raw, length in lines:
                self._line(raw, length)
            notify("reading", self._cutter.position, size)

    def _tee(self, chunks: Iterable[bytes], writer: ObjectWriter | None) -> Iterator[bytes]:
        for chunk in chunks:
            self._content.update(chunk)
            if writer is not None:
                writer.write(chunk)
            yield chunk

    def _line(self, raw: bytes, length: int) -> None:
        number = self._cutter.line + 1
        parsed = parse_line(raw, number, self._rules)
        is_request = isinstance(parsed, Request)
        self._cutter.add(length, is_request=is_request)
        if isinstance(parsed, Request):
            self._requests += 1
            if self._requests == 1:
                check_system(self._rules, parsed.url)
                self._rules = replace(self._rules, endpoint=parsed.url)
                self._model = self._model or parsed.body.get("model")
            self._ids.add(id_digest(parsed.custom_id), number)
            self._questions[parsed.deterministic].add(parsed.base_key[:_COMPARABLE], number)
        elif parsed is not None:
            self._rejected.add(parsed)

    def _judge(self) -> None:
        """All lines are read: find repeated ids, then apply the policy for bad lines."""
        self._reject_repeated_ids()
        if self._rejected.count and self._asked.on_invalid is OnInvalid.FAIL:
            raise InvalidLines(list(islice(self._rejected, _SHOWN)), self._rejected.count)
        if not self._requests:
            raise BadInput("The input has no line that can run." if self._rejected.count else "The input is empty.")

    def _reject_repeated_ids(self) -> None:
        """The first line with an id keeps it; the later ones are taken out of their shards."""
        firsts = Marks(self._cutter.line)
        for group in self._ids.repeats():
            for line in islice(group, 1, None):
                firsts.set(line, group[0])
        self._ids = RepeatIndex()  # its memory is of use to what follows
        shards = self._cutter.finish()
        for number, shard in enumerate(shards):
            lost = len(firsts.of(shard))
            if lost:
                shards[number] = replace(shard, requests=shard.requests - lost)
                self._requests -= lost
                self._rejected.count += lost
        self._rejected.firsts = firsts

    def _marked(self, shards: list[Shard]) -> _MarkedShards:
        """Tell the shards which of their lines ask what another line asks too."""
        marks = Marks(self._cutter.line)
        while self._questions:
            deterministic, index = self._questions.popitem()
            for group in index.repeats():
                mark_repeats(marks, group, deterministic=deterministic)
        return _MarkedShards(shards, marks)


@dataclass(frozen=True, slots=True)
class _MarkedShards:
    """Each shard gets its marks as it is read: all at once they would take more than a hundred bytes a line."""

    shards: list[Shard]
    marks: Marks

    def __iter__(self) -> Iterator[Shard]:
        return (replace(shard, marks=self.marks.of(shard)) for shard in self.shards)


class _RejectedSpool:
    """Rejected lines in line order; on disk, so that a file of nothing but garbage costs no memory.

    ``firsts`` are those that show only when all lines are read: the later lines with an id, and where it was first.
    """

    def __init__(self, joined: JoinedSources, *, at_most: int | None) -> None:
        self._joined = joined
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="synthgen-rejected-")  # noqa: SIM115 - closed by close()
        self._at_most = at_most
        self.count = 0
        self.firsts = Marks(0)

    def add(self, rejected: Rejected) -> None:
        """In line order; counted, and kept unless there are ``at_most`` already."""
        if self._at_most is None or self.count < self._at_most:
            self._file.write(orjson.dumps(self._joined.placed(rejected), option=orjson.OPT_APPEND_NEWLINE))
        self.count += 1

    def __iter__(self) -> Iterator[Rejected]:
        self._file.seek(0)
        early = (Rejected(**orjson.loads(line)) for line in self._file)
        late = (self._joined.placed(self._repeated_id(line, first)) for line, first in self.firsts)
        return heapq.merge(early, late, key=lambda rejected: rejected.line)

    def _repeated_id(self, line: int, first: int) -> Rejected:
        message = f"Field 'custom_id' is the same as on {self._joined.place(first)}."
        return Rejected(line, "duplicate_custom_id", message)

    def close(self) -> None:
        self._file.close()


def _after(moment: datetime, seconds: int | None) -> datetime | None:
    return None if seconds is None else moment + timedelta(seconds=seconds)
