"""``synthgen model pull`` as a real process against a real hub over HTTP, and a worker's engine that starts from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.fakes.vllm_process import as_python
from tests.stub_hub import StubHub

REPO = "tiny/llama"
ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20
WEIGHTS = os.urandom(1 << 10) * (25 << 10)
"""25 MB: the hub's client writes ten at a time."""


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with StubHub() as stub:
        stub.add(REPO, {"config.json": b"{}", "model.safetensors": WEIGHTS})
        yield stub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    yield home
    synthgen("db", "stop", environ=os.environ | {"SYNTHGEN_HOME": str(home)})


@pytest.fixture
def environ(hub: StubHub, home: Path, tmp_path: Path) -> dict[str, str]:
    ours = {"HF_ENDPOINT": hub.url, "SYNTHGEN_HOME": str(home), "SYNTHGEN_MODELS_DIR": str(tmp_path / "models")}
    return {**os.environ, **ours, "PYTHONPATH": str(ROOT)}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cli", *map(str, words)]


def synthgen(*words: object, environ: dict[str, str], exits: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, env=environ, timeout=90, check=False)
    assert done.returncode == exits, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_a_pull_that_was_killed_goes_on_where_it_stopped(hub: StubHub, environ: dict[str, str], tmp_path: Path) -> None:
    hub.hold["model.safetensors"] = 15 * MEGABYTE
    killed = subprocess.Popen(command("model", "pull", REPO), env=environ, stderr=subprocess.DEVNULL)
    assert hub.held.wait(60)
    part = tmp_path / "models" / "tiny--llama" / ".parts" / hub.revisions[REPO]["main"] / "model.safetensors"
    while part.stat().st_size < 10 * MEGABYTE:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait(20)
    hub.let_go.set()
    hub.hold.clear()
    hub.ranges.clear()
    done = synthgen("model", "pull", REPO, environ=environ)
    assert hub.ranges == [("model.safetensors", 10 * MEGABYTE)]
    folder = Path(done.stdout.strip())
    assert folder == tmp_path / "models" / "tiny--llama" / hub.revisions[REPO]["main"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "2 files, 26.2 MB, of which 15.7 MB came now" in done.stderr


def test_folder_and_revision_can_be_chosen(hub: StubHub, environ: dict[str, str], tmp_path: Path) -> None:
    commit = hub.add(REPO, {"config.json": b"{1}"}, revision="v2")
    words = ("--revision", "v2", "--to", tmp_path / "elsewhere", "--include", "*.json")
    done = synthgen("model", "pull", REPO, *words, environ=environ)
    assert done.stdout == f"{tmp_path / 'elsewhere' / 'tiny--llama' / commit}\n"


def test_what_goes_wrong_is_one_sentence(hub: StubHub, environ: dict[str, str]) -> None:
    unknown = synthgen("model", "pull", "tiny/lama", environ=environ, exits=2)
    assert unknown.stderr.startswith(f"Error: There is no model 'tiny/lama' at {hub.url}")
    nowhere = synthgen("model", "pull", REPO, environ=environ | {"HF_ENDPOINT": "http://127.0.0.1:1"}, exits=1)
    assert nowhere.stderr.startswith("Error: The model hub at http://127.0.0.1:1 cannot be reached")
    assert nowhere.stderr.count("\n") == unknown.stderr.count("\n") == 1


def test_a_vllm_starts_from_what_was_pulled_and_answers_say_so(
    hub: StubHub, environ: dict[str, str], tmp_path: Path
) -> None:
    synthgen("model", "pull", REPO, environ=environ)
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_bytes(orjson.dumps({"prompt": "Why?", "temperature": 0, "seed": 7}))
    python = as_python(tmp_path, tmp_path / "journal")
    words = ("--engine", "vllm", "--vllm-python", python, "--model", REPO, "--measure-ttft", "-o", answers)
    synthgen("run", questions, *words, environ=environ)
    ours = orjson.loads(answers.read_bytes())["synthgen"]
    assert (ours["engine"], ours["engine_version"], ours["model"]) == ("vllm", "0.0.1", REPO)
    assert ours["revision"] == hub.revisions[REPO]["main"]
    assert ours["parameters"] == {"temperature": 0, "seed": 7}
    assert ours["ttft_ms"] > 0
