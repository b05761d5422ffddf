"""Room for as many connections as requests in flight: many systems allow 1,024 open files until one asks for more.

A GPU's vLLM wants thousands in flight, and each is a connection. Eight of them behind one port want more than there are
ports on our side to connect from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_PORTS: Final = 16_000
"""Where the system does not tell: macOS and others have 49152 to 65535."""
_OTHERS: Final = 256
"""Files besides: database, broker, storage, libraries."""


def allow_ports() -> int:
    """How many connections to one address are safe: three quarters of the ports that they are made from, because those
    of connections that were closed are not free at once."""
    try:
        first, last = (int(word) for word in _PORTS.read_text().split())
    except (OSError, ValueError):
        return _USUAL_PORTS * 3 // 4
    return max(1, (last - first + 1) * 3 // 4)


def allow_connections(wanted: int) -> int:
    """Raise this process's limit of open files as far as need be and can be; for how many connections it is enough."""
    try:
        import resource
    except ImportError:  # a system without such limits
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    limit = need if hard == resource.RLIM_INFINITY else min(need, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # macOS allows less than it says
        limit = soft
    return max(1, min(wanted, limit - _OTHERS))
