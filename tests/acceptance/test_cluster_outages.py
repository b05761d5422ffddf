"""Broker, database, storage or model server away in the middle of a batch: the batch waits, goes on and is whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import kombu
import pytest
from psycopg import conninfo

from synthgen.states import BatchState
from tests.acceptance.cluster import PROMPT, Cluster, read_prompts, text_of, until
from tests.services.rabbitmq import Broker
from tests.services.s3 import S3Server
from tests.services.tcp_proxy import TcpProxy
from tests.stub_llm import StubLLM, answer_to

ROWS = 400
ENGINE = ("--in-flight", 16, "--shards", 4)


@pytest.fixture
def source(questions: Callable[[int], Path]) -> Path:
    return questions(ROWS)


@contextmanager
def proxied_url(url: str, variable: str) -> Iterator[tuple[TcpProxy, dict[str, str]]]:
    """A proxy in front of the server at ``url``, and the variable that leads through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with TcpProxy(parts.hostname, parts.port) as proxy:
        account = f"{parts.username}:{parts.password}@" if parts.username else ""
        yield proxy, {variable: parts._replace(netloc=f"{account}127.0.0.1:{proxy.port}").geturl()}


@contextmanager
def proxied_database(url: str) -> Iterator[tuple[TcpProxy, dict[str, str]]]:
    known = conninfo.conninfo_to_dict(url)
    if str(known.get("host", "/")).startswith("/"):
        pytest.skip("The database of the tests is on a socket; a TCP connection is cut here.")
    with TcpProxy(str(known["host"]), int(known.get("port") or 5432)) as proxy:
        own = conninfo.make_conninfo(**known | {"host": "127.0.0.1", "port": proxy.port})
        words = conninfo.conninfo_to_dict(own)
        account = words["user"] + (f":{words['password']}" if "password" in words else "")
        address = f"postgresql://{account}@127.0.0.1:{proxy.port}/{words['dbname']}"
        yield proxy, {"SYNTHGEN_DATABASE_URL": address}


def begin(cluster: Cluster, stub: StubLLM, source: Path) -> str:
    stub.latency = 0.25
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 40)
    cluster.wait_for_answers(batch, 80)
    return batch


def assert_whole(cluster: Cluster, batch_id: str, source: Path) -> None:
    cluster.wait(batch_id)
    assert [text_of(line) for line in cluster.results(batch_id)] == [answer_to(p) for p in read_prompts(source)]


def asked_again(stub: StubLLM) -> set[str]:
    return {prompt for prompt, count in stub.counts()["asked"].items() if count > 1}


def assert_no_tracebacks(cluster: Cluster) -> None:
    for process in cluster.processes:
        assert "Traceback" not in process.log, f"{process.name} shows a traceback"


def test_workers_find_their_broker_again_and_lost_messages_are_sent_anew(
    cluster: Cluster, broker: Broker, stub: StubLLM, source: Path
) -> None:
    with proxied_url(broker.url, "SYNTHGEN_BROKER_URL") as (proxy, variables):
        cluster.workers(2, "--base-url", stub.url, *ENGINE, SYNTHGEN_WINDOW="3", **variables)
        batch = begin(cluster, stub, source)

        proxy.cut()
        with kombu.Connection(broker.url) as connection, connection.channel() as channel:
            channel.queue_delete(f"{broker.queue_prefix}.{cluster.pool}")  # with all messages in it
        for worker in cluster.processes:
            worker.says("Connection to broker lost")
        proxy.mend()

        assert_whole(cluster, batch, source)
    assert not asked_again(stub)
    assert_no_tracebacks(cluster)


def test_a_queue_deleted_under_its_workers_is_made_again(
    cluster: Cluster, broker: Broker, stub: StubLLM, source: Path
) -> None:
    cluster.workers(2, "--base-url", stub.url, *ENGINE, SYNTHGEN_WINDOW="3")
    batch = begin(cluster, stub, source)

    with kombu.Connection(broker.url) as connection, connection.channel() as channel:
        channel.queue_delete(f"{broker.queue_prefix}.{cluster.pool}")

    assert_whole(cluster, batch, source)
    assert not asked_again(stub)
    assert_no_tracebacks(cluster)


def test_a_batch_submitted_while_the_broker_is_away_is_stored_and_runs_later(
    cluster: Cluster, stub: StubLLM, source: Path
) -> None:
    scope = ("--pool", cluster.pool, "--namespace", cluster.pool, "--model", "m")
    nobody = {"SYNTHGEN_BROKER_URL": "amqp://guest:secret@127.0.0.1:1//"}

    done = cluster.cli("submit", source, *PROMPT, *scope, **nobody)

    batch = done.stdout.splitlines()[-1]
    assert "amqp://guest:********@127.0.0.1:1// does not answer" in " ".join(done.stderr.split())
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.progress(batch).batch.state is BatchState.IN_PROGRESS
    cluster.worker("--base-url", stub.url)
    assert_whole(cluster, batch, source)


def test_workers_wait_for_a_database_that_is_away(
    cluster: Cluster, database_url: str, stub: StubLLM, source: Path
) -> None:
    with proxied_database(database_url) as (proxy, variables):
        cluster.workers(2, "--base-url", stub.url, *ENGINE, **variables)
        batch = begin(cluster, stub, source)

        proxy.cut()
        cut = time.time()
        for worker in cluster.processes:
            worker.says("database away")
        until("every lease has lapsed, twice", lambda: time.time() > cut + 8, timeout=10)
        stub.latency = 0.05
        proxy.mend()

        assert_whole(cluster, batch, source)
    assert not asked_again(stub)  # whoever lives keeps its shards, though all leases have run out
    for worker in cluster.processes:
        assert "database is back" in worker.log
    assert_no_tracebacks(cluster)


def test_workers_wait_for_storage_that_is_away(
    cluster: Cluster, s3_server: S3Server, stub: StubLLM, source: Path
) -> None:
    with proxied_url(s3_server.endpoint_url, "SYNTHGEN_S3_ENDPOINT_URL") as (proxy, variables):
        cluster.workers(2, "--base-url", stub.url, *ENGINE, **variables)
        batch = begin(cluster, stub, source)

        proxy.cut()
        cut = time.time()
        until("seals have met the outage", lambda: time.time() > cut + 5, timeout=10)
        stub.latency = 0.05
        proxy.mend()

        assert_whole(cluster, batch, source)
    assert not asked_again(stub)
    assert_no_tracebacks(cluster)
