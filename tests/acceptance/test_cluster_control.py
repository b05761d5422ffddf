"""What a user does to a batch that workers are running: pause, resume, cancel, retry; and engines that need mending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from synthgen.states import BatchState
from tests.acceptance.cluster import PROMPT, Cluster, read_prompts, text_of, until
from tests.services.tcp_proxy import TcpProxy
from tests.stub_llm import StubLLM, answer_to

ROWS = 300
ENGINE = ("--in-flight", 16, "--shards", 3)


def test_a_broken_engine_pauses_the_batch_and_resume_goes_on_once_it_is_mended(
    cluster: Cluster, stub: StubLLM, questions: Callable[[int], Path]
) -> None:
    source = questions(ROWS)
    with TcpProxy("127.0.0.1", stub.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/v1"
        cluster.worker("--base-url", url, *ENGINE, SYNTHGEN_API_KEY="mine", SYNTHGEN_UNREACHABLE_AFTER="2")

        def run(name: str, sentence: str, mend: Callable[[], None]) -> None:
            batch = cluster.submit(source, *PROMPT, "--shard-requests", 40, "--name", name, "--cache", "off")
            paused = cluster.wait(batch, BatchState.PAUSED)
            assert sentence in str(paused.batch.reason)
            assert (paused.counts.succeeded, paused.counts.failed) == (0, 0)
            until("all shards are given back", lambda: cluster.progress(batch).running == 0)
            mend()
            cluster.cli("resume", batch)
            assert cluster.wait(batch).counts.succeeded == ROWS

        stub.key = "another"
        run("wrong-key", "API key", lambda: setattr(stub, "key", None))
        stub.models = ("another",)
        run("unknown-model", "'m'", lambda: setattr(stub, "models", ()))
        proxy.cut()
        run("gone", "check that the server runs", proxy.mend)

    assert "Traceback" not in cluster.processes[0].log
    refused = stub.counts()["requests"] - 3 * ROWS
    assert refused <= 2 * 3 * 16  # what the first shards had in flight


def begin_slowly(cluster: Cluster, stub: StubLLM, source: Path) -> str:
    """A batch with some answers, and so slow from now on that a command finds it in the middle."""
    stub.latency = 0.2
    batch = cluster.submit(source, *PROMPT, "--shard-requests", 40)
    until("some are answered", lambda: stub.counts()["answered"] > 40)
    stub.latency = 2.0
    return batch


def test_a_paused_batch_asks_nothing_and_a_resumed_one_asks_the_rest(
    cluster: Cluster, stub: StubLLM, questions: Callable[[int], Path]
) -> None:
    source = questions(ROWS)
    cluster.worker("--base-url", stub.url, *ENGINE, SYNTHGEN_RESEND_AFTER="300")
    batch = begin_slowly(cluster, stub, source)

    cluster.cli("pause", batch)
    stub.latency = 0.05
    until("all shards are given back", lambda: cluster.progress(batch).running == 0)
    paused = stub.counts()["requests"]
    assert paused < ROWS - 16, "there was no middle any more"
    assert cluster.wait(cluster.submit(questions(10), *PROMPT, "--cache", "off")).counts.succeeded == 10  # others go on
    assert stub.counts()["requests"] == paused + 10

    stub.reset()
    cluster.cli("resume", batch)
    cluster.wait(batch)

    assert stub.counts()["requests"] == ROWS - paused
    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(p) for p in read_prompts(source)]


def test_a_cancelled_batch_keeps_what_it_has_and_retry_asks_only_the_rest(
    cluster: Cluster, stub: StubLLM, questions: Callable[[int], Path]
) -> None:
    source = questions(ROWS)
    cluster.worker("--base-url", stub.url, *ENGINE, SYNTHGEN_RESEND_AFTER="300")
    batch = begin_slowly(cluster, stub, source)

    cluster.cli("cancel", batch)
    stub.latency = 0.05
    counts = cluster.wait(batch, BatchState.CANCELLED).counts

    assert counts.succeeded + counts.failed == ROWS
    assert counts.failed > 0
    assert stub.counts()["answered"] == counts.succeeded
    cancelled = cluster.results(batch)
    assert [line["synthgen"]["line"] for line in cancelled] == list(range(1, ROWS + 1))
    assert {line["error"]["code"] for line in cancelled if line["error"]} == {"batch_cancelled"}

    cluster.cli("retry", batch)
    cluster.wait(batch)

    assert stub.counts()["asked"] == dict.fromkeys(read_prompts(source), 1)
    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(p) for p in read_prompts(source)]


def test_retry_asks_only_the_rows_that_failed(cluster: Cluster, stub: StubLLM, tmp_path: Path) -> None:
    prompts = [f"row {number}" + " [[stub status=400,200]]" * (number % 10 == 0) for number in range(100)]
    source = tmp_path / "some-fail.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"prompt": prompt}) + b"\n" for prompt in prompts))
    cluster.worker("--base-url", stub.url, *ENGINE)
    batch = cluster.submit(source, "--shard-requests", 20)
    counts = cluster.wait(batch).counts
    assert (counts.succeeded, counts.failed) == (90, 10)
    stub.reset()
    stub.asked.update(prompts)  # it answers 200 from the second time on

    cluster.cli("retry", batch)
    counts = cluster.wait(batch).counts

    assert (counts.succeeded, counts.failed) == (100, 0)
    assert {prompt for prompt, count in stub.counts()["asked"].items() if count == 2} == set(prompts[::10])
    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(prompt) for prompt in prompts]
