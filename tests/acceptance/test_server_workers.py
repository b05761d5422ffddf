"""Workers with a server of their own that is not vLLM: any command that opens an OpenAI-compatible one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import orjson

from tests.acceptance.cluster import PROMPT, Cluster, read_prompts, text_of
from tests.stub_llm import answer_to

ROOT = Path(__file__).parents[2]
ROWS = 200
POISONED = 77


def test_a_row_that_kills_the_server_fails_alone_and_all_others_are_answered(
    cluster: Cluster, questions: Callable[[int], Path], tmp_path: Path
) -> None:
    prompts = read_prompts(questions(ROWS))
    prompts[POISONED] += " [[stub die=1]]"
    source = tmp_path / "poisoned.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"question": prompt}) + b"\n" for prompt in prompts))
    journal = tmp_path / "journal"
    opens = f"{sys.executable} -m tests.fakes.vllm_process --port {{port}} --journal {journal} --served-model-name m"
    worker = cluster.worker("--engine", "server", "--command", opens, "--in-flight", "64", PYTHONPATH=str(ROOT))

    batch = cluster.submit(source, *PROMPT, "--shard-requests", 50)
    counts = cluster.wait(batch, timeout=120).counts

    assert (counts.succeeded, counts.failed) == (ROWS - 1, 1)
    assert "it is started again" in worker.log
    lines = cluster.results(batch)
    failed = [line for line in lines if line["synthgen"].get("error_code")]
    assert [(line["synthgen"]["line"], line["synthgen"]["error_code"]) for line in failed] == [
        (POISONED + 1, "engine_crashed")
    ]
    answered = [text_of(line) for line in lines if line not in failed]
    assert answered == [answer_to(prompt) for number, prompt in enumerate(prompts) if number != POISONED]


_IMPATIENT = """
import sys
from synthgen.engines.child_server import Patience
from synthgen.engines.server import ServerEngine
ServerEngine.patience = Patience(stall=1, stop=1, first_wait=0.1)
from cli.main import main
main(sys.argv[1:])
"""
"""``synthgen``, with less patience for a server that makes no progress."""


def test_a_server_that_hangs_in_the_middle_of_a_batch_is_started_again_and_no_row_fails(
    cluster: Cluster, questions: Callable[[int], Path], tmp_path: Path
) -> None:
    prompts = read_prompts(questions(ROWS))
    prompts[POISONED] += " [[stub hang=1]]"
    source = tmp_path / "hanging.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"question": prompt}) + b"\n" for prompt in prompts))
    journal = tmp_path / "journal"
    opens = shlex.join(
        [sys.executable, "-m", "tests.fakes.hanging_server", "--port", "{port}", "--journal", f"{journal}"]
    )
    words = ["worker", "--pool", cluster.pool, "--engine", "server", "--command", opens, "--in-flight", "64"]
    worker = cluster.start("impatient", [sys.executable, "-c", _IMPATIENT, *words], PYTHONPATH=str(ROOT))

    batch = cluster.submit(source, *PROMPT, "--shard-requests", 50)
    counts = cluster.wait(batch, timeout=120).counts

    assert (counts.succeeded, counts.failed) == (ROWS, 0)
    assert "The server server made no progress for 1 s with" in worker.log
    assert journal.read_text().split() == ["starts", "hangs", "starts"]
    assert [text_of(line) for line in cluster.results(batch)] == [answer_to(prompt) for prompt in prompts]
