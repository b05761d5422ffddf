"""What commands print of batches in memory, and what they do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

import tasks.wiring
from cli.main import main
from synthgen.batch import Batch, Counts
from synthgen.errors import ServiceUnavailable
from synthgen.ports import Beat, Services
from synthgen.run_shard import run_shard
from synthgen.settings import load_settings
from synthgen.states import BatchState
from synthgen.workers import WorkerState
from tests.examples import some_worker
from tests.workshop import REFUSED, Workshop, failing, questions

Synthgen = Callable[..., Result]


@pytest.fixture
def workshop(workshop_with: Callable[..., Workshop]) -> Workshop:
    """Line 2 fails."""
    return workshop_with(failing({"line-2": REFUSED}))


@pytest.fixture
def synthgen(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Synthgen:
    """Runs a command on the workshop's services."""

    @contextmanager
    def connect(settings: object, **_: object) -> Iterator[Services]:
        yield workshop.services

    monkeypatch.setattr(tasks.wiring, "connect", connect)

    def run(*arguments: str, exits: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == exits, done.output
        assert "Traceback" not in done.output
        return done

    return run


@pytest.fixture
def batch(workshop: Workshop) -> Batch:
    """Ended: two rows succeeded, one failed, one line rejected."""
    return workshop.run(workshop.submitted([*questions(3), b"{broken"], on_invalid="skip"))


def json_of(done: Result) -> Any:
    return orjson.loads(done.stdout)


STATUS_FIELDS = {
    "id",
    "name",
    "status",
    "reason",
    "created_at",
    "started_at",
    "completed_at",
    "total",
    "succeeded",
    "failed",
    "cached",
    "rejected",
    "running",
    "pending",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
    "cached_completion_tokens",
    "cost",
    "shards",
}


def test_status_as_json_has_the_promised_fields_and_adds_up(synthgen: Synthgen, batch: Batch) -> None:
    shown = json_of(synthgen("status", "last", "--json"))
    assert set(shown) >= STATUS_FIELDS
    assert shown["total"] == 3 == sum(shown[name] for name in ("succeeded", "failed", "running", "pending"))
    assert set(shown["shards"]) >= {"pending", "queued", "running", "done"}


def test_status_says_what_came_of_the_batch(synthgen: Synthgen, batch: Batch) -> None:
    shown = synthgen("status", batch.id[:14]).stdout
    assert batch.id in shown
    assert "2 succeeded, 1 failed, 1 rejected" in shown
    assert "1 x context_length_exceeded: Too long." in shown


def test_status_says_what_is_kept_of_shards_that_were_given_back(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    attempt = workshop.store.claim(batch.id, number=None, owner="x", lease=60)
    assert attempt is not None
    workshop.store.heartbeat([Beat(attempt.token, Counts(succeeded=2))], lease=60)
    assert "kept" not in synthgen("status", batch.id).stdout
    workshop.store.release(attempt)
    assert (
        "at least 2 answers of unsealed shards, which will not be asked for again"
        in synthgen("status", batch.id).stdout
    )


def test_list_shows_batches_newest_first(synthgen: Synthgen, workshop: Workshop, batch: Batch) -> None:
    workshop.clock.advance(1)
    newer = workshop.submitted(questions(5))
    listed = json_of(synthgen("list", "--json"))
    assert [entry["id"] for entry in listed] == [newer.id, batch.id]
    assert set(listed[0]) >= STATUS_FIELDS
    head, first, second = synthgen("list").stdout.splitlines()
    assert head.split()[:3] == ["ID", "NAME", "STATUS"]
    assert (first.split()[0], second.split()[0]) == (newer.id, batch.id)


def test_list_can_be_narrowed(synthgen: Synthgen, workshop: Workshop, batch: Batch) -> None:
    workshop.submitted(questions(5))
    assert [entry["id"] for entry in json_of(synthgen("list", "--json", "--status", "completed"))] == [batch.id]
    assert len(json_of(synthgen("list", "--json", "--limit", "1"))) == 1


def test_an_empty_list_is_no_error(synthgen: Synthgen) -> None:
    assert json_of(synthgen("list", "--json")) == []
    assert synthgen("list").stdout == ""


def test_results_are_all_rows_in_input_order(synthgen: Synthgen, batch: Batch) -> None:
    lines = [orjson.loads(line) for line in synthgen("results", "last").stdout.splitlines()]
    assert [line["custom_id"] for line in lines] == ["line-1", "line-2", "line-3"]


@pytest.mark.parametrize(("only", "ids"), [("succeeded", ["line-1", "line-3"]), ("failed", ["line-2"])])
def test_results_can_be_narrowed(synthgen: Synthgen, batch: Batch, only: str, ids: list[str]) -> None:
    lines = synthgen("results", "last", "--only", only).stdout.splitlines()
    assert [orjson.loads(line)["custom_id"] for line in lines] == ids


def test_results_as_text_are_just_the_answers(synthgen: Synthgen, batch: Batch) -> None:
    assert synthgen("results", "last", "--text").stdout == "re: question 1\n\nre: question 3\n"


def test_results_of_a_running_batch_say_that_more_will_come(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.submitted(questions(3))
    done = synthgen("results", "last")
    assert done.stdout == ""
    assert "0 of 3 rows are finished" in done.stderr


def test_following_results_tells_by_its_exit_code_that_rows_failed(synthgen: Synthgen, batch: Batch) -> None:
    assert len(synthgen("results", "last", "--follow", exits=3).stdout.splitlines()) == 3


def test_following_the_results_of_a_paused_batch_says_how_to_go_on(synthgen: Synthgen, workshop: Workshop) -> None:
    paused = workshop.submitted(questions(3))
    synthgen("pause", "last")
    assert f"synthgen resume {paused.id}" in synthgen("results", "last", "--follow", exits=1).stderr


def test_show_finds_a_request_by_line_and_by_custom_id(synthgen: Synthgen, batch: Batch) -> None:
    by_line, by_id = synthgen("show", "last", "3").stdout, synthgen("show", "last", "line-3").stdout
    assert by_line == by_id
    for part in ("question 3", "re: question 3", "succeeded", "attempts"):
        assert part in by_line


def test_show_takes_a_number_without_a_line_for_a_custom_id(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.run(workshop.submitted([{"custom_id": "77", "prompt": "a"}]))
    assert json_of(synthgen("show", "last", "77", "--json"))["output"]["custom_id"] == "77"


def test_show_tells_why_a_request_failed(synthgen: Synthgen, batch: Batch) -> None:
    assert "failed: context_length_exceeded: Too long." in synthgen("show", "last", "2").stdout


def test_show_tells_why_a_line_was_rejected(synthgen: Synthgen, batch: Batch) -> None:
    assert synthgen("show", batch.id, "4").stdout.startswith(
        "line 4 was rejected: invalid_json_line: Line is not valid"
    )
    shown = json_of(synthgen("show", batch.id, "4", "--json"))
    assert (shown["request"], shown["output"]) == (None, None)
    assert (shown["rejected"]["line"], shown["rejected"]["code"]) == (4, "invalid_json_line")


def test_errors_are_grouped_and_then_listed_with_rejected_lines_last(synthgen: Synthgen, batch: Batch) -> None:
    shown = json_of(synthgen("errors", "last", "--json"))
    assert [(cause["kind"], cause["code"], cause["count"]) for cause in shown["causes"]] == [
        ("failed", "context_length_exceeded", 1),
        ("rejected", "invalid_json_line", 1),
    ]
    assert [(row["kind"], row["line"], row["custom_id"]) for row in shown["rows"]] == [
        ("failed", 2, "line-2"),
        ("rejected", 4, None),
    ]
    assert "Too long." in synthgen("errors", "last").stdout


def test_errors_of_one_code_and_no_more_rows_than_wanted(synthgen: Synthgen, batch: Batch) -> None:
    shown = json_of(synthgen("errors", "last", "--json", "--code", "invalid_json_line"))
    assert [row["line"] for row in shown["rows"]] == [4]
    limited = synthgen("errors", "last", "--limit", "1")
    assert "invalid_json_line  Line" not in limited.stdout.partition("\n\n")[2]
    assert "and 1 more" in limited.stderr


def test_errors_promise_no_rows_of_what_was_cancelled_untouched(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    synthgen("cancel", "last")
    shown = synthgen("errors", "last")
    assert "batch_cancelled" in shown.stdout
    assert "--limit" not in shown.stderr
    assert f"not listed here: 4 rows; 'synthgen results {batch.id} --only failed' lists them" in shown.stderr
    limited = synthgen("errors", "last", "--limit", "0").stderr
    assert "… and 1 more: --limit" in limited
    assert "Never begun" not in synthgen("errors", "last", "--code", "context_length_exceeded").stderr


def test_pause_and_resume_change_the_state(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    synthgen("pause", "last")
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
    synthgen("resume", "last")
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


def test_cancel_keeps_finished_rows_and_retry_runs_the_others(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    synthgen("cancel", "last")
    assert workshop.store.get(batch.id).state is BatchState.CANCELLED
    assert "3 rows will run again" in synthgen("retry", "last").stderr
    assert workshop.run(batch).state is BatchState.COMPLETED


def test_retry_of_a_batch_that_is_paused_says_what_to_do_instead(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    synthgen("pause", "last")
    assert f"to go on with it: synthgen resume {batch.id}" in synthgen("retry", "last", exits=1).stderr


def test_retry_of_one_code_leaves_the_others(synthgen: Synthgen, batch: Batch) -> None:
    assert "no failed rows with this code" in synthgen("retry", "last", "--code", "rate_limited").stderr
    assert "1 row will run again" in synthgen("retry", "last", "--code", "context_length_exceeded").stderr


def test_retry_of_one_code_says_what_it_leaves(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    synthgen("cancel", "last")
    said = synthgen("retry", "last", "--code", "context_length_exceeded").stderr
    assert "1 row will run again. What never ran stays so (4 rows); when it has ended, " in said
    assert "synthgen retry --code batch_cancelled runs that." in said
    assert workshop.run(batch).state is BatchState.CANCELLED


def test_rm_does_not_remove_without_being_told_so(synthgen: Synthgen, workshop: Workshop, batch: Batch) -> None:
    assert "--yes" in synthgen("rm", "last", exits=2).stderr
    assert workshop.store.get(batch.id) == batch
    synthgen("rm", "last", "--yes")
    assert synthgen("status", batch.id, exits=1).stderr.startswith("Error: ")


def test_one_batch_that_cannot_be_changed_does_not_keep_the_others_from_it(
    synthgen: Synthgen, workshop: Workshop, batch: Batch
) -> None:
    running = workshop.submitted(questions(5))
    done = synthgen("pause", batch.id, "batch_none", running.id, exits=1)
    assert workshop.store.get(running.id).state is BatchState.PAUSED
    assert done.stderr.count("Error: ") == 2


def test_watch_ends_with_the_exit_code_of_the_batch(synthgen: Synthgen, workshop: Workshop, batch: Batch) -> None:
    assert "2 succeeded, 1 failed, 1 rejected" in synthgen("watch", batch.id, exits=3).stderr
    clean = workshop.run(workshop.submitted(questions(1)))
    assert "completed" in synthgen("watch", clean.id).stderr


def test_watching_a_paused_batch_gives_its_reason_and_what_to_do(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1), pool="gpu")
    workshop.store.move(batch.id, BatchState.PAUSED, reason="The key is wrong.")
    said = synthgen("watch", batch.id, exits=1).stderr
    assert "The key is wrong." in said
    assert f"synthgen resume {batch.id}" in said


def test_a_batch_whose_stored_input_was_changed_is_not_said_to_go_on(synthgen: Synthgen, workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    workshop.objects.put(batch.input_key, b"{}\n")
    run_shard(workshop.services, workshop.worker, batch.id)
    said = synthgen("watch", batch.id, exits=1).stderr
    assert "was changed. Cancel this batch and submit it again." in said
    assert "To go on" not in said


def test_the_cache_is_counted_and_purged(synthgen: Synthgen, batch: Batch) -> None:
    [entry] = json_of(synthgen("cache", "stats", "--json"))
    assert (entry["namespace"], entry["model"], entry["responses"]) == ("default", "m", 2)
    assert "2 responses removed" in synthgen("cache", "purge", "--model", "m", "--yes").stderr
    assert json_of(synthgen("cache", "stats", "--json")) == []


@pytest.mark.parametrize("arguments", [(), ("--all", "--model", "m")])
def test_purging_needs_to_be_told_what(synthgen: Synthgen, batch: Batch, arguments: tuple[str, ...]) -> None:
    synthgen("cache", "purge", "--yes", *arguments, exits=2)
    assert json_of(synthgen("cache", "stats", "--json"))[0]["responses"] == 2


def test_a_service_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> object:
        raise ServiceUnavailable("The database at h/d does not answer; check that it is running.")

    monkeypatch.setattr(tasks.wiring, "connect", connect)
    done = CliRunner().invoke(main, ["list"])
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: The database at h/d does not answer; check that it is running.\n",
    )


def test_run_without_an_engine_says_what_to_choose(synthgen: Synthgen) -> None:
    assert "--engine mock" in synthgen("run", "q.jsonl", exits=2).stderr


@pytest.mark.parametrize(("arguments", "output"), [((), "q.results.jsonl"), (("--name", "demo"), "demo.results.jsonl")])
def test_answers_are_called_after_the_batch_whether_it_is_new_or_not(
    synthgen: Synthgen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_bytes(b'{"prompt": "a"}\n')
    synthgen("run", "q.jsonl", "--engine", "mock", *arguments)
    answers = Path(output).read_bytes()
    Path(output).unlink()
    synthgen("run", "--batch", "last", "--engine", "mock")
    assert Path(output).read_bytes() == answers


def test_run_without_an_input_is_bad_usage(synthgen: Synthgen) -> None:
    assert "Name an input" in synthgen("run", "--engine", "mock", exits=2).stderr


def test_config_masks_secrets_and_tells_where_values_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGEN_API_KEY", "sk-secret")
    monkeypatch.setenv("SYNTHGEN_DATABASE_URL", "postgresql://me:hidden@host/db")
    done = CliRunner().invoke(main, ["config", "--json"])
    shown = orjson.loads(done.stdout)
    assert (shown["api_key"]["value"], shown["api_key"]["origin"]) == ("********", "SYNTHGEN_API_KEY")
    assert shown["home"]["meaning"].startswith("Folder for embedded state")
    assert shown["window"]["origin"] == "default"
    assert "hidden" not in done.output
    assert "sk-secret" not in CliRunner().invoke(main, ["config"]).output


# ---- workers, pools, models


def test_an_engine_that_cannot_sleep_is_not_told_to(synthgen: Synthgen) -> None:
    done = synthgen("worker", "--engine", "mock", "--idle-sleep", "5m", exits=2)
    assert "The mock engine cannot sleep; leave out --idle-sleep" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("run q.jsonl --engine mock --gpus 0", "--gpus"),
        ("worker --engine openai --base-url http://h/v1 --gpus 0,1", "--gpus"),
        ("worker --engine litellm --vllm-python /usr/bin/python3", "--vllm-python"),
        ("worker --engine vllm --model m --command run-it", "--command"),
        ("worker --engine server --command run-it -- --max-model-len 8192", "what stands after --"),
        ("worker --base-url http://h/v1 -- --max-model-len 8192", "what stands after --"),
        ("worker --engine mock --gpus-per-replica 2", "--gpus-per-replica"),
    ],
)
def test_what_would_do_nothing_is_refused(synthgen: Synthgen, arguments: str, option: str) -> None:
    assert option in synthgen(*arguments.split(), exits=2).stderr


def test_settings_that_workers_share_may_be_of_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGEN_GPUS", "0")
    monkeypatch.setenv("SYNTHGEN_ENGINE_ARGUMENTS", "--seed 1")
    assert tasks.wiring.engine_spec(load_settings().override({"engine": "mock"})).kind == "mock"


@pytest.mark.parametrize("command", ["workers", "pools", "models"])
def test_without_workers_one_is_told_how_to_start_one(synthgen: Synthgen, command: str) -> None:
    done = synthgen(command)
    assert done.stdout == ""
    assert "start one with: synthgen worker" in done.stderr
    assert json_of(synthgen(command, "--json")) == []


def test_workers_are_listed_with_what_they_do_and_why_they_failed(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("h/ns/17/1.0", in_flight=3, gpu_memory=2 * 10**9))
    workshop.services.registry.beat(some_worker("h/ns/18/1.0", state=WorkerState.FAILED, reason="It died."))
    done = synthgen("workers")
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "HOST PID POOL ENGINE STATE IN FLIGHT REQ/S TOKENS/S GPU SEEN MODELS",
        "host-1 17 gpu vllm 0.11.0 idle 3/256 0.0 0.0 2.0 GB 0 s m",
        "host-1 18 gpu vllm 0.11.0 failed 0/256 0.0 0.0 - 0 s m",
    ]
    assert "host-1 18 failed: It died." in done.stderr
    assert [worker["id"] for worker in json_of(synthgen("workers", "--json"))] == ["h/ns/17/1.0", "h/ns/18/1.0"]
    assert json_of(synthgen("workers", "--pool", "other", "--json")) == []
    assert "Pool 'other' has no live worker" in synthgen("workers", "--pool", "other").stderr


def test_pools_show_their_workers_and_a_pool_without_any_its_work(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1"))
    workshop.submitted(questions(4), pool="empty")
    workshop.submitted(questions(2), pool="auto", model="unknown")
    workshop.submitted(questions(1), pool=None)
    shown = json_of(synthgen("pools", "--json"))
    assert [(pool["name"], pool["serving"], pool["batches"], pool["pending"]) for pool in shown] == [
        ("empty", 0, 1, 4),
        ("gpu", 1, 0, 0),
    ]
    assert synthgen("pools").stdout.splitlines()[1].split() == ["empty", "none", "0/0", "0.0", "0.0", "1", "4", "-"]
    assert "1 idle" in synthgen("pools").stdout


def test_models_show_who_serves_them_and_what_waits_for_them(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", models=("m", "adapter")))
    workshop.services.registry.beat(some_worker("2", models=("m",), pool="b", state=WorkerState.WARMING))
    workshop.services.registry.beat(some_worker("3", models=("gone",), state=WorkerState.FAILED))
    workshop.submitted(questions(2), pool="auto", model="unknown")
    shown = json_of(synthgen("models", "--json"))
    assert shown == [
        {"model": "adapter", "pools": ["gpu"], "workers": 1, "serving": 1, "waiting_batches": 0},
        {"model": "m", "pools": ["b", "gpu"], "workers": 2, "serving": 1, "waiting_batches": 0},
        {"model": "unknown", "pools": [], "workers": 0, "serving": 0, "waiting_batches": 1},
    ]
    assert synthgen("models").stdout.splitlines()[3].split() == ["unknown", "0", "0", "1", "none"]


def test_status_says_what_a_batch_waits_for(synthgen: Synthgen, workshop: Workshop) -> None:
    workshop.submitted(questions(2), pool="auto", model="unknown")
    assert json_of(synthgen("status", "last", "--json"))["waiting_for"].startswith(
        "No worker serves 'unknown'; no pool"
    )
    shown = synthgen("status", "last").stdout
    assert "waiting  No worker serves 'unknown'" in shown
    assert "pool     the one that serves its model" in shown
    workshop.services.registry.beat(some_worker("1", models=("unknown",)))
    assert json_of(synthgen("status", "last", "--json"))["waiting_for"] is None
    assert "waiting " not in synthgen("status", "last").stdout


def test_submit_without_a_pool_goes_where_the_model_is_served(
    synthgen: Synthgen, workshop: Workshop, tmp_path: Path
) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text('{"prompt": "a"}\n')
    waits = synthgen("submit", str(source), "--model", "m")
    assert "No worker serves 'm'; no pool is live." in waits.stderr
    workshop.services.registry.beat(some_worker("1", pool="gpu", models=("m",)))
    goes = synthgen("submit", str(source), "--model", "m", "--new")
    assert "It goes to pool 'gpu'." in goes.stderr
    assert workshop.store.get(goes.stdout.strip()).options.pool == "gpu"
    assert "Pool 'mine' has no live worker." in synthgen("submit", str(source), "--pool", "mine").stderr


def test_a_pool_that_is_set_for_all_is_used_by_submit_too(
    synthgen: Synthgen, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHGEN_POOL", "house")
    source = tmp_path / "q.jsonl"
    source.write_text('{"prompt": "a"}\n')
    done = synthgen("submit", str(source))
    assert workshop.store.get(done.stdout.strip()).options.pool == "house"
