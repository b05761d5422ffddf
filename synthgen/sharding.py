"""A stream of bytes becomes lines, lines become shards: byte ranges of the input object; and where objects live.

Nothing here grows with the input but the list of shards (one small value for each few hundred lines).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice
from struct import iter_unpack

from synthgen.batch import SHARED, BatchOptions, Shard

PREFIX = "batches/"
MOST_SHARDS = 64
"""That a worker runs at once by default."""
_USUAL_SHARD = BatchOptions().shard_requests


def input_key(batch_id: str) -> str:
    return f"{PREFIX}{batch_id}/input.jsonl"


def result_key(batch_id: str, number: int, token: int) -> str:
    """The token is in the name, so that no attempt can overwrite another's result."""
    return f"{PREFIX}{batch_id}/results/{number:08d}-{token}.jsonl"


def manifest_key(batch_id: str) -> str:
    return f"{PREFIX}{batch_id}/manifest.json"


def batch_of(key: str) -> str | None:
    """The batch id in a key, or None for a key that is not ours."""
    parts = key.split("/")
    return parts[1] if len(parts) > 2 and parts[0] + "/" == PREFIX else None


def split_lines(chunks: Iterable[bytes], *, max_bytes: int) -> Iterator[list[tuple[bytes, int]]]:
    """Lines in lists, one list a chunk: each line without its line end, and its length in the stream with it.

    A line longer than ``max_bytes`` may come cut, but to more than ``max_bytes`` bytes and with its true length: memory
    is bounded by that and a chunk, and the caller can still tell. The last line needs no newline.
    """
    held = bytearray()
    dropped = 0
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        lines: list[tuple[bytes, int]] = []
        if len(pieces) > 1:
            first = bytes(held) + pieces[0] if held else pieces[0]
            lines.append((first, len(first) + dropped + 1))
            lines.extend((piece, len(piece) + 1) for piece in pieces[1:-1])
            held.clear()
            dropped = 0
        room = max_bytes + 2 - len(held)
        tail = pieces[-1]
        held += tail[:room] if room > 0 else b""
        dropped += max(0, len(tail) - max(room, 0))
        yield [(line.removesuffix(b"\r"), size) for line, size in lines]
    if held:
        yield [(bytes(held).removesuffix(b"\r"), len(held) + dropped)]


class ShardCutter:
    """Cuts a shard after ``max_requests`` requests or ``max_bytes`` bytes, whichever comes first."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.shards: list[Shard] = []
        self.position = 0
        self.line = 0
        self._start = 0
        self._first_line = 1
        self._requests = 0

    def add(self, size: int, *, is_request: bool) -> None:
        """The next line of the stream, ``size`` bytes with its line end. Long stretches of bad lines join no shard."""
        if self._requests and (
            self._requests >= self._max_requests or self.position - self._start + size > self._max_bytes
        ):
            self._cut()
        elif not self._requests and self.position - self._start + size > self._max_bytes:
            self._start, self._first_line = self.position, self.line + 1
        self.position += size
        self.line += 1
        self._requests += is_request

    def finish(self) -> list[Shard]:
        """All shards; lines after the last request may belong to none."""
        if self._requests:
            self._cut()
        return self.shards

    def _cut(self) -> None:
        number, lines = len(self.shards), self.line - self._first_line + 1
        self.shards.append(Shard(number, self._start, self.position, self._first_line, lines, self._requests))
        self._start, self._first_line, self._requests = self.position, self.line + 1, 0


class RepeatIndex:
    """Finds equal values among millions of lines in twelve bytes each.

    A value is kept as 72 bits of its BLAKE2b hash (eight of them choose a bucket) with its line number: two different
    values of a ten-million-line batch are taken for equal with a probability of 1e-8.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(256)]

    def add(self, digest: bytes, line: int) -> None:
        """``digest``: at least nine bytes of a cryptographic hash; ``line``: higher than those before."""
        self._buckets[digest[0]] += digest[1:9] + line.to_bytes(4, "big")

    def repeats(self) -> Iterator[array[int]]:
        """The line numbers of each value that occurs more than once, ascending; groups in no order."""
        for bucket in self._buckets:
            times = Counter(value for (value,) in iter_unpack("8s4x", bucket))
            groups = {value: array("I") for value, count in times.items() if count > 1}
            if not groups:
                continue
            for value, line in iter_unpack(">8sI", bucket):
                if value in groups:
                    groups[value].append(line)
            yield from groups.values()


def id_digest(custom_id: str) -> bytes:
    return blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=9).digest()


class Marks:
    """A number for some of the lines, in four bytes for every line of the input once there is any.

    The mark of a repeated question (k-th sample, or ``SHARED``), or the line that has a repeated id first.
    """

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._numbers: array[int] | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Line and number, in line order."""
        return ((line, number) for line, number in enumerate(self._numbers or ()) if number)

    def set(self, line: int, number: int) -> None:
        if self._numbers is None:
            self._numbers = array("i", [0]) * (self._lines + 1)
        self._numbers[line] = number

    def of(self, shard: Shard) -> tuple[tuple[int, int], ...]:
        """Those of the lines of one shard."""
        if self._numbers is None:
            return ()
        lines = range(shard.first_line, shard.first_line + shard.lines)
        numbers = self._numbers[lines.start : lines.stop]
        return tuple((line, number) for line, number in zip(lines, numbers, strict=True) if number)


def mark_repeats(marks: Marks, group: Sequence[int], *, deterministic: bool) -> None:
    """Give the lines of equal requests their marks: all share one answer, or the k-th asks for the k-th sample."""
    if deterministic:
        for line in group:
            marks.set(line, SHARED)
    else:
        for occurrence, line in enumerate(islice(group, 1, None), start=2):
            marks.set(line, occurrence)


def flatten_marks(marks: Iterable[tuple[int, int]]) -> list[int]:
    """As one list of numbers, the form in which they are stored."""
    return list(chain.from_iterable(marks))


def default_shards(in_flight: int, shard_requests: int = _USUAL_SHARD) -> int:
    """Enough shards at once that the engine never waits for the next: twice its appetite, at least two."""
    return max(2, min(MOST_SHARDS, -(-2 * in_flight // max(1, shard_requests)) + 1))
