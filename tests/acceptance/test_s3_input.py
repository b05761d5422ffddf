"""Input that lies in S3 already: copied inside the store, worked on by ``run`` over PostgreSQL and S3, gzip or not."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest

from tests.acceptance.cluster import PROMPT, Cluster
from tests.services.s3 import S3Server

_COUNT = 300


@pytest.fixture
def bucket(s3_credentials: S3Server) -> Any:
    """The bucket that the cluster uses."""
    resource = boto3.resource("s3", endpoint_url=s3_credentials.endpoint_url, region_name="us-east-1")
    yield resource.Bucket(s3_credentials.bucket)
    resource.meta.client.close()


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_that_lies_in_s3_is_run_and_its_answers_come_in_order(
    cluster: Cluster, bucket: Any, gsm8k: Path, tmp_path: Path, packed: bool
) -> None:
    content = b"".join(gsm8k.read_bytes().splitlines(keepends=True)[:_COUNT])
    key = f"inputs/gsm8k-{packed}.jsonl"
    bucket.put_object(Key=key, Body=gzip.compress(content) if packed else content)

    output = tmp_path / "answers.jsonl"
    source = f"s3://{bucket.name}/{key}"
    cluster.cli("run", source, *PROMPT, "--engine", "mock", "--model", "m", "-o", output)

    lines = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert [line["synthgen"]["line"] for line in lines] == list(range(1, _COUNT + 1))
    assert all(line["error"] is None for line in lines)


def test_an_input_that_is_not_there_is_told_in_one_sentence(cluster: Cluster, s3_server: S3Server) -> None:
    done = cluster.cli("submit", f"s3://{s3_server.bucket}/inputs/none.jsonl", expect=2)
    assert "none.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
