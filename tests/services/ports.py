"""Free TCP ports for servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket


def free_ports(count: int, *, twin: int = 0) -> list[int]:
    """Ports on 127.0.0.1 that nobody uses now, nor (where given) the one ``twin`` above each."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 2_000):
        if all(_is_free(p) for p in {port, port + twin}):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
