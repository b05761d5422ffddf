"""Real ``synthgen`` processes on the embedded default, with the mock engine: the laptop's side of the main job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.stub_llm import StubLLM

PATIENCE = 60.0
MOCK = ("--engine", "mock")
SLOW = (*MOCK, "--in-flight", "20", "--engine-option", "latency=0.2", "--shard-requests", "50")
"""A hundred rows a second."""


class Synthgen:
    """Runs commands in a folder of the test's own, on the session's database; each test has its part of the cache."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self._environ = os.environ | {"SYNTHGEN_HOME": str(home), "SYNTHGEN_HEARTBEAT": "0.2"}

    def __call__(self, *words: object, exits: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """To its end, which must have this exit code and no traceback."""
        done = subprocess.run(
            self._command(words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environ,
            input=stdin if stdin is not None else "",
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == exits, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, *words: object) -> subprocess.Popen[str]:
        """In the background, its output kept for ``communicate``."""
        process = subprocess.Popen(
            self._command(words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=self._environ,
        )
        self.started.append(process)
        return process

    def questions(self, count: int, *, name: str = "questions.jsonl") -> Path:
        path = self.folder / name
        lines = [orjson.dumps({"custom_id": f"q{i}", "prompt": f"{name}: {i}?"}) for i in range(1, count + 1)]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    def answers(self, name: str = "questions.results.jsonl") -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (self.folder / name).read_bytes().splitlines()]

    def status(self, reference: str = "last") -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self("status", reference, "--json").stdout)
        assert found["total"] == sum(found[name] for name in ("succeeded", "failed", "running", "pending"))
        return found

    def wait_for(self, name: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until the batch of this name exists and is as wanted."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            for found in orjson.loads(self("list", "--json").stdout):
                if found["name"] == name and condition(found):
                    return dict(found)
        raise AssertionError(f"{name} is not as wanted:\n{self('list').stdout}")

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    @staticmethod
    def _command(words: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", "cli", *map(str, words)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One embedded database for all; it is stopped in the end."""
    home = tmp_path_factory.mktemp("home")
    yield home
    Synthgen(home, home)("db", "stop")


@pytest.fixture
def synthgen(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Synthgen]:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    runner = Synthgen(tmp_path, home)
    yield runner
    runner.end()


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def wanted_ids(count: int) -> list[str]:
    return [f"q{i}" for i in range(1, count + 1)]


def test_every_request_has_its_line_in_order_and_a_second_run_is_all_cached(synthgen: Synthgen) -> None:
    synthgen.questions(1_319)
    command = ("run", "questions.jsonl", *MOCK, "--namespace", "twice")
    said = synthgen(*command).stderr
    assert ids(synthgen.answers()) == wanted_ids(1_319)
    assert "The text is mocked" in said
    assert "questions.results.jsonl" in said
    first = {line["custom_id"]: line["response"]["body"] for line in synthgen.answers()}
    synthgen(*command)
    assert synthgen.status()["cached"] == 1_319
    assert {line["custom_id"]: line["response"]["body"] for line in synthgen.answers()} == first


def test_bad_lines_store_nothing_unless_they_are_skipped(synthgen: Synthgen) -> None:
    bad = "\n".join(['{"prompt": "fine"}', "{broken", *['{"custom_id": "x"}'] * 24])
    (synthgen.folder / "bad.jsonl").write_text(bad)
    refused = synthgen("run", "bad.jsonl", *MOCK, exits=2).stderr
    assert "line 2: invalid_json_line: " in refused
    assert sum(line.startswith("line ") for line in refused.splitlines()) == 20
    assert "25 invalid lines" in refused
    assert "bad" not in [batch["name"] for batch in orjson.loads(synthgen("list", "--json").stdout)]
    synthgen("run", "bad.jsonl", *MOCK, "--on-invalid", "skip", "--errors", "bad.errors.jsonl", exits=3)
    assert len(synthgen.answers("bad.results.jsonl")) == 1
    assert [line["line"] for line in synthgen.answers("bad.errors.jsonl")] == list(range(2, 27))
    assert synthgen.status()["rejected"] == 25


def test_standard_input_and_output_make_a_pipe(synthgen: Synthgen) -> None:
    done = synthgen("run", "-", "-o", "-", *MOCK, stdin='{"prompt": "a"}\n{"prompt": "b"}')
    assert [orjson.loads(line)["custom_id"] for line in done.stdout.splitlines()] == ["line-1", "line-2"]
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("cache", ["use", "off"])
def test_a_run_that_is_killed_goes_on_and_asks_again_only_what_was_in_flight(
    synthgen: Synthgen, stub: StubLLM, cache: str
) -> None:
    name = f"killed-{cache}"
    synthgen.questions(600, name=f"{name}.jsonl")
    server = ("--base-url", stub.url, "--model", "m", "--in-flight", "20", "--shard-requests", "50")
    command = ("run", f"{name}.jsonl", "--cache", cache, *server)
    stub.latency = 0.2
    killed = synthgen.start(*command)
    before = synthgen.wait_for(name, lambda found: found["succeeded"] >= 300)
    killed.kill()
    moment = time.time()
    killed.communicate()
    safe = {prompt for prompt, times in stub.answers.items() if times[0] < moment - 2.0}
    stub.latency = 0.0
    assert "going on with it" in synthgen(*command).stderr
    asked = stub.counts()["asked"]
    assert safe
    assert not [prompt for prompt in safe if asked[prompt] > 1]
    assert ids(synthgen.answers(f"{name}.results.jsonl")) == wanted_ids(600)
    after = synthgen.status(before["id"])
    assert (after["status"], after["succeeded"], after["failed"], after["cached"]) == ("completed", 600, 0, 0)


def test_a_second_run_asks_the_server_nothing(synthgen: Synthgen, stub: StubLLM) -> None:
    synthgen.questions(200, name="again.jsonl")
    command = ("run", "again.jsonl", "--base-url", stub.url, "--model", "m")
    synthgen(*command)
    synthgen(*command)
    assert stub.counts()["requests"] == 200
    assert synthgen.status()["cached"] == 200


def test_ctrl_c_drains_and_says_how_to_go_on(synthgen: Synthgen) -> None:
    synthgen.questions(600, name="interrupted.jsonl")
    command = ("run", "interrupted.jsonl", *SLOW)
    running = synthgen.start(*command)
    synthgen.wait_for("interrupted", lambda found: found["succeeded"] >= 100)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (synthgen.folder / "interrupted.results.jsonl").exists()
    synthgen(*command)
    assert ids(synthgen.answers("interrupted.results.jsonl")) == wanted_ids(600)


def test_a_second_ctrl_c_leaves_at_once(synthgen: Synthgen) -> None:
    synthgen.questions(40, name="hasty.jsonl")
    running = synthgen.start("run", "hasty.jsonl", *MOCK, "--engine-option", "latency=300")
    synthgen.wait_for("hasty", lambda found: found["running"] > 0)
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert running.poll() is None, "the first one waits for what is in flight"
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=5)
    assert running.returncode == 130
    assert "Left at once" in said
    assert "is cancelled" in synthgen("cancel", "hasty").stderr


def test_a_batch_whose_run_was_killed_can_be_cancelled_removed_and_run_again(synthgen: Synthgen) -> None:
    synthgen.questions(600, name="dead.jsonl")
    running = synthgen.start("run", "dead.jsonl", *SLOW)
    synthgen.wait_for("dead", lambda found: found["succeeded"] >= 100)
    running.kill()
    running.communicate()
    batch_id = synthgen.status("dead")["id"]
    assert "is cancelled" in synthgen("cancel", batch_id).stderr
    batch = synthgen.status(batch_id)
    assert batch["succeeded"] >= 100
    assert batch["succeeded"] + batch["failed"] == 600
    synthgen("rm", batch_id, "--yes")
    synthgen("run", "dead.jsonl", *MOCK)
    assert ids(synthgen.answers("dead.results.jsonl")) == wanted_ids(600)


def test_a_batch_can_be_paused_and_resumed_while_it_runs(synthgen: Synthgen) -> None:
    synthgen.questions(600, name="paused.jsonl")
    command = ("run", "paused.jsonl", *SLOW)
    running = synthgen.start(*command)
    synthgen.wait_for("paused", lambda found: found["succeeded"] >= 100)
    synthgen("pause", "paused")
    _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "is paused: Paused by the user. To go on, run the same command again." in said
    assert synthgen.status("paused")["status"] == "paused"
    assert "synthgen run" in synthgen("resume", "paused").stderr
    synthgen("run", "--batch", "paused", *MOCK)
    assert ids(synthgen.answers("paused.results.jsonl")) == wanted_ids(600)


def test_a_cancelled_batch_keeps_its_rows_and_retry_runs_the_rest(synthgen: Synthgen) -> None:
    synthgen.questions(600, name="cancelled.jsonl")
    command = ("run", "cancelled.jsonl", *SLOW)
    running = synthgen.start(*command)
    synthgen.wait_for("cancelled", lambda found: found["succeeded"] >= 100)
    synthgen("cancel", "cancelled")
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 3
    lines = synthgen.answers("cancelled.results.jsonl")
    assert ids(lines) == wanted_ids(600)
    codes = [line["synthgen"].get("error_code") for line in lines]
    assert set(codes) == {None, "batch_cancelled"}
    batch = synthgen.status("cancelled")
    assert batch["succeeded"] == codes.count(None) >= 100
    assert f"{codes.count('batch_cancelled')} rows will run again" in synthgen("retry", "cancelled").stderr
    assert "going on with it" in synthgen(*command).stderr
    after = synthgen.status(batch["id"])
    assert (after["status"], after["succeeded"]) == ("completed", 600)


def test_failed_rows_are_explained_retried_by_cause_and_removed(synthgen: Synthgen) -> None:
    synthgen.questions(30, name="failing.jsonl")
    fails = ("--engine-option", "fail_ids=q3,q20", "--engine-option", "fail_status=400")
    said = synthgen("run", "failing.jsonl", *MOCK, *fails, exits=3).stderr
    assert "28 succeeded, 2 failed" in said
    assert "synthgen retry batch_" in said
    assert len(synthgen.answers("failing.results.jsonl")) == 30
    errors = orjson.loads(synthgen("errors", "failing", "--json").stdout)
    [cause] = errors["causes"]
    assert cause["count"] == 2
    assert [row["line"] for row in errors["rows"]] == [3, 20]
    assert "failed" in synthgen("show", "failing", "q3").stdout
    assert "nothing to run again" in synthgen("retry", "failing", "--code", "rate_limited").stderr
    assert "2 rows will run again" in synthgen("retry", "failing", "--code", cause["code"]).stderr
    synthgen("run", "failing.jsonl", *MOCK)
    assert synthgen.status("failing")["succeeded"] == 30
    texts = synthgen("results", "failing", "--text").stdout.splitlines()
    assert len(texts) == 30
    assert texts[2] in synthgen("show", "failing", 3).stdout
    assert "--yes" in synthgen("rm", "failing", exits=2).stderr
    synthgen("rm", "failing", "--yes")
    synthgen("status", "failing", exits=1)


def test_an_answer_file_of_other_work_is_not_overwritten(synthgen: Synthgen) -> None:
    synthgen.questions(3, name="kept.jsonl")
    synthgen("run", "kept.jsonl", *MOCK)
    before = (synthgen.folder / "kept.results.jsonl").read_bytes()
    refused = synthgen("run", "kept.jsonl", *MOCK, "--set", "temperature=0.5", exits=2).stderr
    assert "--force" in refused
    assert (synthgen.folder / "kept.results.jsonl").read_bytes() == before
    assert [b["name"] for b in orjson.loads(synthgen("list", "--json").stdout)].count("kept") == 1
    (synthgen.folder / "notes.jsonl").write_text("of somebody's own\n")
    assert "holds no answers" in synthgen("run", "kept.jsonl", "-o", "notes.jsonl", *MOCK, exits=2).stderr
    synthgen("run", "kept.jsonl", *MOCK, "--set", "temperature=0.5", "--force")
    assert (synthgen.folder / "kept.results.jsonl").read_bytes() != before


def test_submit_prints_the_id_alone_and_attaches_when_repeated(synthgen: Synthgen) -> None:
    synthgen.questions(3, name="submitted.jsonl")
    first = synthgen("submit", "submitted.jsonl", "--pool", "nobody")
    [batch_id] = first.stdout.splitlines()
    assert synthgen.status(batch_id)["pool"] == "nobody"
    assert "synthgen worker --pool nobody" in first.stderr
    again = synthgen("submit", "submitted.jsonl", "--pool", "nobody")
    assert again.stdout == first.stdout
    assert "going on with it" in again.stderr
    assert synthgen("submit", "submitted.jsonl", "--pool", "nobody", "--new").stdout != first.stdout
    synthgen("cancel", batch_id, "last")


def test_an_engine_that_cannot_answer_pauses_the_batch_with_what_to_fix(synthgen: Synthgen) -> None:
    synthgen.questions(5, name="broken.jsonl")
    broken = (*MOCK, "--engine-option", "fail_rate=1", "--engine-option", "fail_status=401")
    said = synthgen("run", "broken.jsonl", *broken, exits=1).stderr
    assert "is paused: " in said
    assert "run the same command again" in said
    batch = synthgen.status("broken")
    assert (batch["status"], batch["failed"], batch["pending"]) == ("paused", 0, 5)
    assert "synthgen resume" in synthgen("watch", "broken", exits=1).stderr
    synthgen("run", "broken.jsonl", *MOCK)
    assert synthgen.status("broken")["succeeded"] == 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "none.jsonl", *MOCK), 2, "none.jsonl"),
        (("run", "none.jsonl", "--engine", "mok"), 2, "mok"),
        (("run", "none.jsonl", *MOCK, "--engine-option", "latency=soon"), 2, "latency"),
        (("run", "none.jsonl", *MOCK, "-o", "no/such/folder/x"), 2, "folder"),
        (("status", "batch_none"), 1, "batch_none"),
        (("show", "batch_none", "1"), 1, "batch_none"),
        (("cancel", "batch_none"), 1, "batch_none"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_done_is_one_sentence(synthgen: Synthgen, words: tuple[str, ...], code: int, said: str) -> None:
    done = synthgen(*words, exits=code)
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("Error: ")
    assert said in sentence


def test_the_doctor_finds_the_embedded_default_well(synthgen: Synthgen) -> None:
    findings = orjson.loads(synthgen("doctor", "--json").stdout)
    assert {finding["check"] for finding in findings} >= {"python", "settings", "database", "storage", "broker", "disk"}
    assert not [finding for finding in findings if finding["status"] == "problem"]


def test_the_database_can_be_looked_at_stopped_and_is_started_again(synthgen: Synthgen) -> None:
    synthgen("list")
    assert orjson.loads(synthgen("db", "status", "--json").stdout)["running"] is True
    assert "is stopped" in synthgen("db", "stop").stderr
    assert orjson.loads(synthgen("db", "status", "--json").stdout)["running"] is False
    assert "Nothing to do" in synthgen("db", "upgrade").stderr
