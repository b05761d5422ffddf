"""The real stack for acceptance tests, and what its processes printed when a test on it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.cluster import QUICK, Cluster, open_cluster
from tests.services.rabbitmq import Broker
from tests.services.s3 import S3Server
from tests.stub_llm import StubLLM


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """What workers said is most of the explanation."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections += [(f"log of {process.name}", process.log[-20_000:]) for process in cluster.processes]
    return report


@pytest.fixture(scope="session")
def stack_environ(database_url: str, broker: Broker, s3_server: S3Server) -> dict[str, str]:
    """Variables that lead to PostgreSQL, RabbitMQ and an S3 server, and notice trouble in seconds."""
    return {
        **os.environ,
        **QUICK,
        "SYNTHGEN_DATABASE_URL": database_url,
        "SYNTHGEN_BROKER_URL": broker.url,
        "SYNTHGEN_QUEUE_PREFIX": broker.queue_prefix,
        "SYNTHGEN_STORAGE_URL": f"s3://{s3_server.bucket}/cluster",
        "SYNTHGEN_S3_ENDPOINT_URL": s3_server.endpoint_url,
        "SYNTHGEN_S3_REGION": "us-east-1",
        **s3_server.environ(),
    }


@pytest.fixture
def cluster(
    stack_environ: dict[str, str], s3_credentials: S3Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Commands and workers on the real stack, in a pool and a part of the cache of this test's own."""
    with open_cluster(stack_environ | {"SYNTHGEN_HOME": str(tmp_path / "home")}, tmp_path) as opened:
        yield opened


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    """A model server that counts what it is asked."""
    with StubLLM() as running:
        yield running


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """1,319 questions, one JSON object a line."""
    return Path(__file__).parents[1] / "data" / "gsm8k.jsonl"


@pytest.fixture
def questions(gsm8k: Path, tmp_path: Path) -> Callable[[int], Path]:
    """The first so many of them as a file."""

    def cut(count: int) -> Path:
        path = tmp_path / f"questions-{count}.jsonl"
        path.write_text("".join(gsm8k.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
        return path

    return cut
