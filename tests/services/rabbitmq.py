"""A RabbitMQ for the tests: the one that runs, in a virtual host of the session's own where that can be made.

``SYNTHGEN_TEST_BROKER_URL`` names another than the local default. Nothing is left behind: the virtual host is deleted,
or, where the account may not make one, every queue whose name begins with ``queue_prefix``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.services.missing import missing

_DEFAULT = "amqp://guest:guest@127.0.0.1:5672//"
_CTL_PATIENCE = 60
TEST_POOLS = ("default", "gpu", "other", "test")
"""The pools that tests may use: where they share a virtual host with others, only the queues of these are removed."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where it is, and how all queues of this session begin."""

    url: str
    queue_prefix: str


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    url = os.environ.get("SYNTHGEN_TEST_BROKER_URL", _DEFAULT)
    if reason := _why_not(url):
        missing(f"No RabbitMQ at {_without_password(url)} ({reason}): start it, or set SYNTHGEN_TEST_BROKER_URL.")
    name = f"synthgen-test-{secrets.token_hex(4)}"
    own = _make_vhost(url, name)
    try:
        yield Broker(own or url, name)
    finally:
        if own:
            _ctl("delete_vhost", name)
        else:
            _delete_queues(url, name)


@pytest.fixture(scope="session")
def broker_url(broker: Broker) -> str:
    return broker.url


@pytest.fixture(scope="session")
def queue_prefix(broker: Broker) -> str:
    """Queues of the session begin so; give it to everything that declares one."""
    return broker.queue_prefix


def _why_not(url: str) -> str | None:
    import kombu
    from kombu.exceptions import OperationalError

    with kombu.Connection(url, connect_timeout=3) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=5)
        except OperationalError as error:
            return str(error) or type(error).__name__
        except connection.connection_errors as error:
            return str(error) or type(error).__name__
    return None


def _make_vhost(url: str, name: str) -> str | None:
    """The URL of a new virtual host on a local server, or None where this account may not make one."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or not _ctl("add_vhost", name):
        return None
    own = parts._replace(path=f"/{name}").geturl()
    if _ctl("set_permissions", "-p", name, parts.username or "guest", ".*", ".*", ".*") and _why_not(own) is None:
        return own
    _ctl("delete_vhost", name)
    return None


def _ctl(*arguments: str) -> bool:
    program = shutil.which("rabbitmqctl")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "--quiet", *arguments], capture_output=True, timeout=_CTL_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _delete_queues(url: str, prefix: str) -> None:
    """AMQP cannot list queues, so those of the pools that tests use are named here."""
    import kombu

    with kombu.Connection(url) as connection, connection.channel() as channel:
        for queue in (f"{prefix}-upkeep", *(f"{prefix}.{pool}" for pool in TEST_POOLS)):
            channel.queue_delete(queue)
        channel.exchange_delete(prefix)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 5672}"
