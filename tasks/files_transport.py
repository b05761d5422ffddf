"""Messages as files in a folder, for several processes of one host without a broker: kombu's transport, made safe.

kombu's own lets a reader see a message that is half written, and takes messages by way of the system's temporary
folder: where that is another file system, two workers that take one message break each other's copy. Either ends a
worker.
"""

from __future__ import annotations

import fcntl
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """A message appears whole, by a rename, and is taken by a rename: one taker wins.

    A broker drops what has expired. Here each look at the folder does, for all queues: what one without a worker piles
    up makes the looks of all others longer. So the names say when it is.
    """

    def _put(self, queue: str, message: Any, **_: Any) -> None:  # type: ignore[override]
        name = f"{round(time.monotonic() * 1000)}_{_expiry(message)}_{uuid.uuid4()}.{queue}.msg"
        part = Path(self.data_folder_out, f".{name}")
        part.write_text(dumps(message))
        part.replace(part.with_name(name))

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002 - kombu's signature
        for path in sorted(Path(self.data_folder_in).iterdir()):
            if _has_expired(path.name):
                path.unlink(missing_ok=True)
                continue
            if path.name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = path.with_name(f".{path.name}.{uuid.uuid4()}")
            try:
                path.rename(taken)
            except OSError:
                continue  # another was faster
            payload = taken.read_bytes()
            taken.unlink()
            return loads(payload)
        raise Empty

    def get_table(self, exchange: str) -> Any:
        with self._locked():
            return super().get_table(exchange)  # type: ignore[no-untyped-call]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with self._locked():
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """kombu makes a table empty first and locks it then: who reads it in between finds nothing it understands."""
        with Path(self.control_folder, ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _expiry(message: Any) -> int:
    """When it expires, in seconds since 1970; 0 for never."""
    expires = (message.get("headers") or {}).get("expires")
    return math.ceil(datetime.fromisoformat(expires).timestamp()) if expires else 0


def _has_expired(name: str) -> bool:
    """Not while it is being written or taken: then its name begins with a dot."""
    sent, _, rest = name.partition("_")
    expiry, _, _ = rest.partition("_")
    return sent.isdecimal() and expiry.isdecimal() and 0 < int(expiry) < time.time()


class Transport(filesystem.Transport):
    Channel = Channel
