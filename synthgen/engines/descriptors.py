"""Room for as many connections as requests in flight: many systems allow 1,024 open files until one asks for more.

A GPU's vLLM wants thousands in flight, and each is a connection.
"""

from __future__ import annotations

from typing import Final

_OTHERS: Final = 256
"""Files besides: database, broker, storage, libraries."""


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
