"""An object store in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from synthgen.errors import NotFound
from synthgen.ports import ObjectInfo


class FakeObjects:
    """``ObjectStore`` that lasts as long as the test; ``objects`` may be looked into and changed by it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}
        self.unfinished: dict[int, tuple[str, datetime]] = {}

    def put(self, key: str, data: bytes) -> None:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"{key!r} is not an object key")
        self.objects[key] = bytes(data)
        self.modified[key] = datetime.now(UTC)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        try:
            return self.objects[key][start:end]
        except KeyError:
            raise NotFound(f"There is no object {key}.") from None

    def stream(self, key: str) -> Iterator[bytes]:
        content = self.get(key)
        for start in range(0, len(content), 1 << 16):
            yield content[start : start + (1 << 16)]

    @contextmanager
    def writer(self, key: str) -> Iterator[FakeWriter]:
        upload = FakeWriter(self, key)
        try:
            yield upload
        finally:
            upload.abort()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), self.modified[key])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def sweep_uploads(self, *, older_than: float) -> int:
        now = datetime.now(UTC)
        stale = [n for n, (_, begun) in self.unfinished.items() if (now - begun).total_seconds() > older_than]
        for number in stale:
            del self.unfinished[number]
        return len(stale)

    def url(self, key: str) -> str:
        return f"memory:{key}"


class FakeWriter:
    """``ObjectWriter`` into a ``FakeObjects``."""

    def __init__(self, store: FakeObjects, key: str) -> None:
        self._store = store
        self._key = key
        self._pieces: list[bytes] = []
        store.unfinished[id(self)] = (key, datetime.now(UTC))

    def write(self, data: bytes) -> None:
        self._pieces.append(bytes(data))

    def commit(self) -> None:
        self._store.put(self._key, b"".join(self._pieces))

    def abort(self) -> None:
        self._store.unfinished.pop(id(self), None)
