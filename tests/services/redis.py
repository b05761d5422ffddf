"""A Redis for the tests: the one that runs (``SYNTHGEN_TEST_REDIS_URL`` names another), in a database found empty."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.services.missing import missing

_DEFAULT = "redis://127.0.0.1:6379"
_TAKEN = "synthgen-test-session"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A numbered database that held nothing before, but for the mark that it is taken, and holds nothing after."""
    import redis

    server = os.environ.get("SYNTHGEN_TEST_REDIS_URL", _DEFAULT).rstrip("/")
    for number in range(15, 0, -1):
        url = f"{server}/{number}"
        with redis.Redis.from_url(url, socket_connect_timeout=3) as client:
            try:
                if not client.set(_TAKEN, os.getpid(), nx=True):
                    continue  # another session's
                if client.dbsize() > 1:
                    client.delete(_TAKEN)
                    continue
            except redis.RedisError as error:
                missing(f"No Redis at {server.rpartition('@')[2]} ({error}): start it, or set SYNTHGEN_TEST_REDIS_URL.")
            yield url
            client.flushdb()
            return
    missing("Redis has no empty database between 1 and 15: empty one for the tests.")
