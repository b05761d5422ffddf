"""Whether the broker and Redis answer, for ``synthgen doctor``: Celery's libraries stay in this package."""

from __future__ import annotations

import redis
from kombu.connection import Connection

from synthgen.errors import ServiceUnavailable
from synthgen.settings import mask_url

_PATIENCE = 5.0


def check_broker(url: str) -> None:
    """Raises ServiceUnavailable."""
    try:
        with Connection(url, connect_timeout=_PATIENCE) as connection:
            connection.ensure_connection(max_retries=1, timeout=_PATIENCE)
    except Exception as error:
        raise ServiceUnavailable(f"The broker at {mask_url(url)} does not answer: {error}.") from error


def check_redis(url: str) -> None:
    """Raises ServiceUnavailable."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=_PATIENCE, socket_timeout=_PATIENCE) as client:
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        raise ServiceUnavailable(f"Redis at {mask_url(url)} does not answer: {error}.") from error
