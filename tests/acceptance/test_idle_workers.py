"""Workers without work: they sleep, they end, and the queue keeps what comes next. Real processes on the real stack."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.cluster import PROMPT, Cluster, until
from tests.fakes.vllm_process import as_python

ROWS = 60


def test_an_idle_worker_ends_and_the_queue_keeps_work_for_the_next(
    cluster: Cluster, questions: Callable[[int], Path]
) -> None:
    source = questions(ROWS)
    batch = cluster.submit(source, *PROMPT)
    first = cluster.worker("--engine", "mock", "--idle-exit", "2s")
    cluster.wait(batch)

    assert first.ends(timeout=20) == 0
    assert re.search(r"no work for \d+ s: the worker ends", first.log)
    assert "Traceback" not in first.log

    batch = cluster.submit(source, *PROMPT, "--set", "seed=1")
    assert cluster.progress(batch).counts.finished == 0
    cluster.worker("--engine", "mock", "--idle-exit", "2s")
    assert cluster.wait(batch).counts.succeeded == ROWS


def test_a_worker_with_slow_requests_is_not_idle(cluster: Cluster, questions: Callable[[int], Path]) -> None:
    batch = cluster.submit(questions(4), *PROMPT)
    worker = cluster.worker("--engine", "mock", "--engine-option", "latency=4", "--idle-exit", "2s")

    assert cluster.wait(batch).counts.succeeded == 4
    assert worker.ends(timeout=20) == 0


def test_an_idle_vllm_sleeps_until_there_is_work(
    cluster: Cluster, questions: Callable[[int], Path], tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    python = as_python(tmp_path, journal)
    worker = cluster.worker("--engine", "vllm", "--model", "tiny", "--vllm-python", python, "--idle-sleep", "1s")
    assert "in_flight=16 shards=2" in worker.log  # from what vLLM says, known after Celery has read its settings
    until("vLLM sleeps", lambda: "sleeps" in journal.read_text())

    batch = cluster.submit(questions(ROWS), *PROMPT, "--model", "tiny")

    assert cluster.wait(batch).counts.succeeded == ROWS
    lines = [line.split()[0] for line in journal.read_text().splitlines()]
    assert lines[:4] == ["starts", "sleeps", "wakes", "asked"]
    assert lines.count("asked") == ROWS
    until("vLLM sleeps again", lambda: journal.read_text().splitlines()[-1] == "sleeps")
