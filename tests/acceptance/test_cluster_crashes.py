"""Workers that die, freeze or are stopped in the middle of a batch: no row is lost, and none is paid for twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.cluster import PROMPT, Cluster, read_prompts, text_of, until
from tests.stub_llm import StubLLM, answer_to

ROWS = 600
IN_FLIGHT = 16
ENGINE = ("--in-flight", IN_FLIGHT, "--shards", 4)
SAFE = 2.0
"""Seconds after which an answer must have reached the checkpoint."""


@pytest.fixture
def source(questions: Callable[[int], Path]) -> Path:
    return questions(ROWS)


def submit_slow_batch(cluster: Cluster, stub: StubLLM, source: Path, *options: object) -> str:
    """A batch that two workers need about three seconds for, one six."""
    stub.latency = 0.15
    return cluster.submit(source, *PROMPT, "--shard-requests", 40, *options)


def answered_before(stub: StubLLM, moment: float) -> set[str]:
    return {prompt for prompt, times in list(stub.answers.items()) if times[0] < moment}


def asked_again(stub: StubLLM) -> set[str]:
    return {prompt for prompt, count in stub.counts()["asked"].items() if count > 1}


def assert_every_row_is_there(cluster: Cluster, batch_id: str, source: Path) -> None:
    lines = cluster.results(batch_id)
    assert [line["synthgen"]["line"] for line in lines] == list(range(1, ROWS + 1))
    assert [text_of(line) for line in lines] == [answer_to(prompt) for prompt in read_prompts(source)]
    counts = cluster.progress(batch_id).counts
    assert (counts.succeeded, counts.failed, counts.cached) == (ROWS, 0, 0)


def wait_for_safe_answers(stub: StubLLM) -> None:
    """Until there are answers old enough to be safe, and yet most of the batch is still to be asked."""
    until("answers reach the checkpoint", lambda: stub.answers)
    first = min(times[0] for times in list(stub.answers.values()))
    until("the first answers are old", lambda: any(t[0] > first + SAFE + 0.3 for t in list(stub.answers.values())))
    assert stub.counts()["answered"] < ROWS - IN_FLIGHT, "there is no middle any more"


@pytest.mark.parametrize("cache", ["use", "off", "refresh"])
def test_a_worker_killed_in_the_middle_costs_only_its_calls_in_flight(
    cluster: Cluster, stub: StubLLM, source: Path, cache: str
) -> None:
    victim, _ = cluster.workers(2, "--base-url", stub.url, *ENGINE)
    stub.latency = 0.3
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 40, "--cache", cache)
    wait_for_safe_answers(stub)

    killed = victim.kill()
    safe = answered_before(stub, killed - SAFE)
    stub.latency = 0.05
    cluster.wait(batch)

    assert len(safe) > IN_FLIGHT
    assert not safe & asked_again(stub)
    assert_every_row_is_there(cluster, batch, source)
    assert len(asked_again(stub)) < 10 * IN_FLIGHT


def test_when_all_workers_are_killed_a_new_one_goes_on_where_they_were(
    cluster: Cluster, stub: StubLLM, source: Path
) -> None:
    victims = cluster.workers(2, "--base-url", stub.url, *ENGINE)
    stub.latency = 0.3
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 40, "--cache", "off")
    wait_for_safe_answers(stub)

    killed = min([victim.kill() for victim in victims])
    safe = answered_before(stub, killed - SAFE)
    stub.latency = 0.05
    cluster.worker("--base-url", stub.url, *ENGINE)
    cluster.wait(batch)

    assert len(safe) > IN_FLIGHT
    assert not safe & asked_again(stub)
    assert_every_row_is_there(cluster, batch, source)


def test_a_frozen_worker_loses_its_lease_and_leaves_no_trace_when_it_thaws(
    cluster: Cluster, stub: StubLLM, source: Path
) -> None:
    frozen, other = cluster.workers(2, "--base-url", stub.url, *ENGINE)
    stub.latency = 0.3
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 40, "--cache", "off")
    wait_for_safe_answers(stub)

    moment = frozen.send(signal.SIGSTOP)
    safe = answered_before(stub, moment - SAFE)
    stub.latency = 0.05
    cluster.wait(batch)
    before = cluster.results(batch)
    frozen.send(signal.SIGCONT)
    frozen.says("lease lost, nothing written")

    assert "shards rescued" in other.log
    assert not safe & asked_again(stub)
    assert cluster.results(batch) == before
    assert_every_row_is_there(cluster, batch, source)
    leftovers = cluster.progress(batch).batch.checkpoint_namespace
    until("checkpoints are removed", lambda: leftovers not in {s.namespace for s in cluster.services.cache.stats()})
    assert "Traceback" not in frozen.log


def test_a_worker_that_is_stopped_gives_back_its_shards_and_nothing_is_asked_twice(
    cluster: Cluster, stub: StubLLM, source: Path
) -> None:
    leaving, staying = cluster.workers(2, "--base-url", stub.url, *ENGINE, SYNTHGEN_RESEND_AFTER="300")
    batch = submit_slow_batch(cluster, stub, source)
    cluster.wait_for_answers(batch, 100)

    leaving.send(signal.SIGTERM)
    code = leaving.ends(timeout=10)
    left = ROWS - cluster.progress(batch).counts.finished
    cluster.wait(batch)

    assert code == 0
    assert "shard given back" in leaving.log
    assert "Traceback" not in leaving.log
    assert left > 0, "there was no middle any more"
    assert not asked_again(stub)
    assert f"shards rescued: batch={batch}" not in staying.log  # handed over, not found
    assert_every_row_is_there(cluster, batch, source)


def test_a_worker_with_nothing_to_do_stops_at_once(cluster: Cluster) -> None:
    worker = cluster.worker("--engine", "mock")

    worker.send(signal.SIGTERM)

    assert worker.ends(timeout=10) == 0
    assert "Traceback" not in worker.log
