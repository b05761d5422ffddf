"""The main job on the real stack: RabbitMQ, PostgreSQL, an S3 server, two workers and the questions of GSM8K."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from synthgen.states import BatchState
from tests.acceptance.cluster import PROMPT, Cluster, read_prompts, text_of, until
from tests.stub_llm import StubLLM, answer_to

QUESTIONS = 1_319


def test_two_workers_answer_gsm8k_once_each_in_order_and_the_second_time_from_the_cache(
    cluster: Cluster, stub: StubLLM, gsm8k: Path
) -> None:
    stub.latency = 0.05
    prompts = read_prompts(gsm8k)
    workers = cluster.workers(2, "--base-url", stub.url, "--in-flight", 64)

    first = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 100)
    cluster.wait(first)
    lines = cluster.results(first)

    assert [line["synthgen"]["line"] for line in lines] == list(range(1, QUESTIONS + 1))
    assert [text_of(line) for line in lines] == [answer_to(prompt) for prompt in prompts]
    assert stub.counts()["asked"] == dict.fromkeys(prompts, 1)
    status = orjson.loads(cluster.cli("status", first, "--json").stdout)
    assert (status["status"], status["succeeded"], status["cached"]) == ("completed", QUESTIONS, 0)
    assert all("shard done" in worker.log for worker in workers), "one worker did everything"

    stub.reset()
    second = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 100)
    progress = cluster.wait(second)

    assert second != first
    assert (progress.counts.succeeded, progress.counts.cached) == (QUESTIONS, QUESTIONS)
    assert stub.counts()["requests"] == 0
    assert [text_of(line) for line in cluster.results(second)] == [answer_to(prompt) for prompt in prompts]


def test_two_workers_answer_gsm8k_with_the_mock_engine(cluster: Cluster, gsm8k: Path) -> None:
    cluster.workers(2, "--engine", "mock", "--engine-option", "latency=0.02")

    batch = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 100)
    cluster.wait(batch)
    lines = cluster.results(batch)

    assert [line["synthgen"]["line"] for line in lines] == list(range(1, QUESTIONS + 1))
    assert len({line["id"] for line in lines}) == QUESTIONS
    assert all(line["error"] is None and line["synthgen"]["engine"] == "mock" for line in lines)
    again = cluster.wait(cluster.submit(gsm8k, *PROMPT))
    assert again.counts.cached == QUESTIONS


def test_equal_deterministic_lines_on_two_workers_are_asked_once(
    cluster: Cluster, stub: StubLLM, tmp_path: Path
) -> None:
    stub.latency = 0.1
    prompts = [f"What is {number} squared?" for number in range(40)] * 10
    source = tmp_path / "repeated.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"prompt": prompt}) + b"\n" for prompt in prompts))
    cluster.workers(2, "--base-url", stub.url, "--in-flight", 16)

    batch = cluster.submit(source, "--set", "temperature=0", "--shard-requests", 50)
    progress = cluster.wait(batch)

    assert stub.counts()["asked"] == dict.fromkeys(prompts[:40], 1)
    assert (progress.counts.succeeded, progress.counts.cached) == (400, 360)
    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(prompt) for prompt in prompts]


def test_a_small_batch_submitted_during_a_big_one_ends_long_before_it(
    cluster: Cluster, stub: StubLLM, gsm8k: Path, questions: Callable[[int], Path]
) -> None:
    stub.latency = 0.15
    cluster.worker("--base-url", stub.url, "--in-flight", 16, "--shards", 2)
    big = cluster.submit(gsm8k, *PROMPT, "--shard-requests", 20)
    cluster.wait_for_answers(big, 20)

    small = cluster.submit(questions(10), *PROMPT, "--cache", "off")
    cluster.wait(small)

    assert cluster.progress(big).batch.state is BatchState.IN_PROGRESS
    assert cluster.progress(big).counts.finished < QUESTIONS * 2 // 3
    stub.latency = 0.0
    cluster.wait(big)
    assert len(cluster.results(big)) == QUESTIONS


def test_the_results_of_a_running_batch_can_be_followed_to_its_end(
    cluster: Cluster, stub: StubLLM, questions: Callable[[int], Path]
) -> None:
    stub.latency = 0.1
    cluster.worker("--base-url", stub.url, "--in-flight", 16)
    batch = cluster.submit(questions(200), *PROMPT, "--shard-requests", 20)
    until("the batch began", lambda: cluster.progress(batch).counts.finished)

    lines = cluster.results(batch, "--follow")

    assert [line["synthgen"]["line"] for line in lines] == list(range(1, 201))
