"""The main job into real vLLM: its CPU build with tiny models, in workers of two pools that all these tests share.

What the models say is noise; that every row is answered once, through the real engine and whatever dies, is the point.
The tests that kill come last, and each leaves a worker for the next.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import psutil
import pytest

from tests.acceptance.cluster import PROMPT, Cluster, Process, open_cluster, text_of, until
from tests.services.s3 import S3Server
from tests.services.vllm import Vllm, make_vllm
from tests.stub_hub import StubHub

PATIENCE = 300.0
"""Seconds for vLLM to start, or to start again, where all else is busy too."""
ROWS = 800
LENGTHS = range(16, 272)
"""Tokens of the answers of a long batch, in turn: they come in one by one, and none waits for the last."""
REPO = "tiny/second"
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": 0, "maximum": 9999},
        "unit": {"enum": ["apples", "dollars", "hours"]},
        "sure": {"type": "boolean"},
    },
    "required": ["answer", "unit", "sure"],
    "additionalProperties": False,
}


class Pools:
    """A cluster with vLLM workers, at most one a pool; a pool is named after the model that it serves."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._workers: dict[str, Process] = {}

    def start(self, name: str, model: Vllm, *arguments: str) -> None:
        """A worker of pool ``name``; does not wait for it."""
        options = ["--engine", "vllm", "--model", model.model, "--vllm-python", model.python, "--", *model.arguments]
        options += ["--max-model-len", "2048", *arguments]
        variables = {name: model.environ[name] for name in ("VLLM_CPU_KVCACHE_SPACE", "HF_HUB_OFFLINE")}
        self._workers[name] = self.cluster.worker(*options, pool=name, ready=False, **variables)

    def worker(self, name: str) -> Process:
        """The pool's worker, once it takes shards."""
        self._workers[name].says("ready: pool=", timeout=PATIENCE)
        return self._workers[name]

    def submit(self, source: Path, *options: object, pool: str) -> str:
        return self.cluster.submit(source, "--model", pool, *options, pool=pool)

    def finished(self, batch: str, count: int) -> list[dict[str, Any]]:
        """Its output lines: all ``count`` rows answered, each once, in the order of the input, none failed."""
        counts = self.cluster.wait(batch, timeout=PATIENCE).counts
        assert (counts.succeeded, counts.failed) == (count, 0)
        lines = self.cluster.results(batch)
        assert [line["synthgen"]["line"] for line in lines] == list(range(1, count + 1))
        assert len({line["custom_id"] for line in lines}) == count
        return lines


@pytest.fixture(scope="module", name="first")
def _first(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    return make_vllm(tmp_path_factory.mktemp("first"), seed=1, name="first")


@pytest.fixture(scope="module", name="second")
def _second(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    return make_vllm(tmp_path_factory.mktemp("second"), seed=2, name="second")


@pytest.fixture(scope="module", name="cluster")
def _cluster(
    stack_environ: dict[str, str], s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.environ().items():
            patched.setenv(name, value)
        with open_cluster(stack_environ | {"SYNTHGEN_HOME": str(folder / "home")}, folder) as opened:
            yield opened


@pytest.fixture(scope="module", name="commit")
def _commit(second: Vllm, cluster: Cluster) -> str:
    """``REPO`` is pulled from a hub that is gone afterwards; the commit of it."""
    with StubHub() as hub:
        commit = hub.add(REPO, {path.name: path.read_bytes() for path in second.model.iterdir()})
        cluster.cli("model", "pull", REPO, HF_ENDPOINT=hub.url)
    return commit


@pytest.fixture(scope="module", name="pools")
def _pools(first: Vllm, second: Vllm, commit: str, cluster: Cluster) -> Pools:
    """Two pools, each with a worker with a vLLM of its own; the second serves what was pulled."""
    started = Pools(cluster)
    started.start("first", first)
    started.start("second", replace(second, model=Path(REPO)))
    return started


def rows(path: Path, source: Path, count: int, *, lengths: range | None = None, **body: Any) -> Path:
    """So many questions as lines of OpenAI's batch format; with ``lengths``, ``max_tokens`` goes through them."""
    questions = [orjson.loads(line)["question"] for line in source.read_bytes().splitlines()[:count]]
    with path.open("wb") as file:
        for number, question in enumerate(questions):
            whole = {"messages": [{"role": "user", "content": question}], **body}
            if lengths is not None:
                whole["max_tokens"] = lengths[number % len(lengths)]
            line = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": whole}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return path


def served_by(worker: Process) -> dict[str, int]:
    """Process ids of the worker's vLLM: ``server`` answers HTTP, ``engine`` computes."""
    found = {}
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if process.cmdline()[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]:
                found["server"] = process.pid
            elif "EngineCore" in " ".join(process.cmdline()):
                found["engine"] = process.pid
    return found


def in_the_middle(pools: Pools, batch: str) -> bool:
    """Whether what has just been killed was killed in the middle of the batch."""
    return pools.cluster.progress(batch).counts.finished < ROWS


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def submit_long(pools: Pools, gsm8k: Path, path: Path, *, salt: str) -> str:
    """A batch that keeps vLLM busy for ten seconds or more, at the beginning of it when this returns."""
    source = rows(path / "long.jsonl", gsm8k, ROWS, lengths=LENGTHS, ignore_eos=True, user=salt, temperature=0.7)
    batch = pools.submit(source, "--shard-requests", 50, "--cache", "off", pool="first")
    pools.cluster.wait_for_answers(batch, 60, timeout=PATIENCE)
    return batch


def test_gsm8k_goes_through_celery_into_vllm(pools: Pools, gsm8k: Path) -> None:
    worker = pools.worker("first")

    batch = pools.submit(gsm8k, *PROMPT, "--set", "max_tokens=8", pool="first")
    lines = pools.finished(batch, 1_319)

    assert all(0 < line["response"]["body"]["usage"]["completion_tokens"] <= 8 for line in lines)
    assert {line["synthgen"]["engine"] for line in lines} == {"vllm"}
    assert "in_flight=512" in worker.log  # twice the 256 that vLLM says it runs at once, told to go for throughput


def test_every_answer_of_a_structured_batch_validates(pools: Pools, gsm8k: Path, tmp_path: Path) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    source = rows(tmp_path / "rows.jsonl", gsm8k, 30, response_format=shape, max_tokens=300, seed=1)
    pools.worker("first")

    lines = pools.finished(pools.submit(source, pool="first"), 30)

    for line in lines:
        jsonschema.validate(orjson.loads(text_of(line)), SCHEMA)


def test_two_pools_serve_two_models_at_once(pools: Pools, commit: str, gsm8k: Path, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", gsm8k, 200, max_tokens=16, temperature=0)
    pools.worker("first")
    pools.worker("second")

    batches = {pool: pools.submit(source, pool=pool) for pool in ("first", "second")}
    lines = {pool: pools.finished(batch, 200) for pool, batch in batches.items()}

    for pool, answered in lines.items():
        assert {line["response"]["body"]["model"] for line in answered} == {pool}
    texts = {pool: [text_of(line) for line in answered] for pool, answered in lines.items()}
    assert texts["first"] != texts["second"]
    assert {line["synthgen"]["revision"] for line in lines["second"]} == {commit}


def test_a_killed_engine_comes_back_and_no_row_fails(pools: Pools, gsm8k: Path, tmp_path: Path) -> None:
    worker = pools.worker("first")
    batch = submit_long(pools, gsm8k, tmp_path, salt="engine")

    engine = served_by(worker)["engine"]
    os.kill(engine, signal.SIGKILL)
    assert in_the_middle(pools, batch)

    pools.finished(batch, ROWS)
    assert "it is started again" in worker.log
    assert served_by(worker)["engine"] != engine


def test_a_killed_worker_takes_its_vllm_along_and_the_next_goes_on(
    pools: Pools, first: Vllm, gsm8k: Path, tmp_path: Path
) -> None:
    worker = pools.worker("first")
    batch = submit_long(pools, gsm8k, tmp_path, salt="worker")

    processes = served_by(worker)
    worker.kill()
    assert in_the_middle(pools, batch)

    until("vLLM is gone with its worker", lambda: all(is_gone(pid) for pid in processes.values()))
    pools.start("first", first)
    pools.finished(batch, ROWS)


def test_worker_and_engine_killed_at_once_lose_no_row(pools: Pools, first: Vllm, gsm8k: Path, tmp_path: Path) -> None:
    worker = pools.worker("first")
    batch = submit_long(pools, gsm8k, tmp_path, salt="both")

    processes = served_by(worker)
    os.kill(processes["server"], signal.SIGKILL)
    worker.kill()
    assert in_the_middle(pools, batch)

    until("vLLM is gone with its worker", lambda: all(is_gone(pid) for pid in processes.values()))
    pools.start("first", first)
    pools.finished(batch, ROWS)


def test_a_batch_of_embeddings(pools: Pools, gsm8k: Path, tmp_path: Path) -> None:
    pools.start("vectors", make_vllm(tmp_path / "model", name="vectors"), "--runner", "pooling", "--convert", "embed")
    source = tmp_path / "rows.jsonl"
    with source.open("wb") as file:
        for number in range(60):
            body = {"input": f"text {number % 30}"}
            line = {"custom_id": f"e{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    pools.worker("vectors")

    lines = pools.finished(pools.submit(source, pool="vectors"), 60)

    vectors = [line["response"]["body"]["data"][0]["embedding"] for line in lines]
    assert {len(vector) for vector in vectors} == {128}
    assert vectors[:30] == vectors[30:]  # equal texts are asked once
    assert len({tuple(vector) for vector in vectors}) == 30
