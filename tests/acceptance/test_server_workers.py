"""Workers with a server of their own that is not vLLM: any command that opens an OpenAI-compatible one."""

from __future__ import annotations

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
