"""Options on the command line become a batch's options, settings, seconds and bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli.batch_options import Wanted, batch_options, stem
from cli.engine_options import engine_options
from cli.main import main
from cli.quantities import Duration, Size
from synthgen.batch import BatchOptions, CacheMode, OnInvalid
from synthgen.engines.server import ServerEngine
from synthgen.errors import BadInput
from synthgen.settings import Settings
from tasks.wiring import engine_spec


@pytest.fixture(autouse=True)
def _no_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wanted(*arguments: str) -> Wanted:
    """What ``submit`` would get."""
    seen: list[Wanted] = []

    @click.command()
    @click.argument("inputs", nargs=-1)
    @batch_options
    def probe(*, wanted: Wanted) -> None:
        seen.append(wanted)

    done = CliRunner().invoke(probe, arguments)
    assert done.exit_code == 0, done.output
    return seen[0]


def settings(*arguments: str) -> Settings:
    """What ``worker`` would get."""
    seen: list[Settings] = []
    done = probe_settings(seen, arguments)
    if done.exception is not None:
        raise done.exception
    return seen[0]


def probe_settings(seen: list[Settings], arguments: tuple[str, ...]) -> Result:
    @click.command()
    @click.option("--model")
    @engine_options
    def probe(*, settings: Settings) -> None:
        seen.append(settings)

    return CliRunner().invoke(probe, arguments)


def test_without_options_a_batch_has_the_defaults_and_its_input_s_name() -> None:
    assert wanted("data/questions.jsonl.gz") == Wanted(("data/questions.jsonl.gz",), "questions", False, BatchOptions())


def test_options_reach_the_batch() -> None:
    given = (
        "a.jsonl b.jsonl --name n --model m --on-invalid skip --cache refresh --namespace s --cache-ttl 7d "
        "--system be-brief --window 1h30m --shard-requests 10 --shard-bytes 2M --endpoint /v1/completions "
        "--prompt {q} --new"
    )
    assert wanted(*given.split()) == Wanted(
        ("a.jsonl", "b.jsonl"),
        "n",
        True,
        BatchOptions(
            endpoint="/v1/completions",
            model="m",
            prompt="{q}",
            system="be-brief",
            on_invalid=OnInvalid.SKIP,
            cache=CacheMode.REFRESH,
            namespace="s",
            cache_ttl=7 * 86_400,
            completion_window=5_400,
            shard_requests=10,
            shard_bytes=2_000_000,
        ),
    )


@pytest.mark.parametrize("given", ["", " "])
def test_a_model_without_a_name_is_refused(given: str) -> None:
    done = CliRunner().invoke(main, ["submit", "--model", given, "x.jsonl"])
    assert done.exit_code == 2
    assert "--model" in done.output
    assert "it is empty; name one, or leave the option out" in done.output
    with pytest.raises(BadInput, match=r"command line: setting 'model' is .*: name a model, or leave it out"):
        settings("--model", given)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("temperature=0.7", 0.7),
        ("n=2", 2),
        ("stop=END", "END"),
        ("logprobs=true", True),
        ('stop=["a", "b"]', ["a", "b"]),
        ("note=a=b", "a=b"),
        ("note=", ""),
    ],
)
def test_a_set_value_is_json_where_it_can_be_and_text_otherwise(text: str, value: Any) -> None:
    assert wanted("x", "--set", text).options.defaults == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("place", "name"),
    [("q.jsonl", "q"), ("s3://bucket/folder/q.ndjson.zst", "q"), ("-", "stdin"), ("v1.2", "v1.2"), (".jsonl", "batch")],
)
def test_a_batch_is_called_after_its_input(place: str, name: str) -> None:
    assert stem(place) == name


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1_800), ("12h", 43_200), ("1h30m", 5_400), ("2w", 1_209_600)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "5", "0s", "h", "1.5h", "1h-5m", "5 m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no duration"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "size"), [("4000000", 4_000_000), ("500k", 500_000), ("4M", 4_000_000), ("1gb", 10**9)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4T", "x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no size"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "q", "--window", "999999999d"),
        ("run", "q", "--cache-ttl", "9" * 5_000 + "w"),
        ("submit", "q", "--shard-requests", "99999999999999999999"),
        ("submit", "q", "--shard-bytes", "99999999999999999999G"),
        ("cache", "purge", "--older-than", "36501d"),
        ("list", "--limit", "99999999999999999999"),
        ("errors", "last", "--limit", "99999999999999999999"),
    ],
    ids=lambda words: words[-2],
)
def test_a_number_beyond_any_use_is_bad_usage(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "Invalid value for" in done.stderr
    assert words[-2] in done.stderr


def test_engine_options_override_settings_and_say_where_they_come_from() -> None:
    given = "--engine openai --base-url http://h/v1 --in-flight 7 --shards 2 --timeout 5 --model m --input-price 0.5"
    made = settings(*given.split())
    assert (made.engine, made.base_url, made.in_flight, made.shards) == ("openai", "http://h/v1", 7, 2)
    assert (made.request_timeout, made.model, made.input_price) == (5.0, "m", 0.5)
    assert made.origins["in_flight"] == "command line"
    assert made.origins["output_price"] == "default"


def test_a_server_may_be_given_less_or_more_time_to_start() -> None:
    made = settings("--engine", "server", "--command", "serve {port}", "--start-timeout", "7200")
    engine = ServerEngine(engine_spec(made))
    assert engine._child._patience.start == 7_200
    assert ServerEngine(replace(engine_spec(made), start_timeout=None))._child._patience.start == 1_800


def test_engine_options_of_the_command_line_join_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGEN_ENGINE_OPTIONS", '{"latency": "1", "fail_rate": "0.5"}')
    made = settings("--engine-option", "latency=0.2", "--engine-option", "fail_ids=a,b")
    assert made.engine_options == {"latency": "0.2", "fail_rate": "0.5", "fail_ids": "a,b"}


def test_the_key_is_read_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    assert settings("--api-key-env", "MY_KEY").api_key == "secret"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(BadInput, match="NO_SUCH_KEY"):
        settings("--api-key-env", "NO_SUCH_KEY")


def test_a_value_out_of_range_names_the_setting() -> None:
    with pytest.raises(BadInput, match="request_timeout"):
        settings("--timeout", "-1")


def test_an_engine_option_without_a_value_is_bad_usage() -> None:
    done = probe_settings([], ("--engine-option", "latency"))
    assert done.exit_code == 2
    assert "NAME=VALUE" in done.output


def test_a_misspelt_variable_is_told_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGEN_DATABSE_URL", "postgresql://h/d")
    done = probe_settings([], ())
    assert done.exit_code == 0
    assert "Did you mean SYNTHGEN_DATABASE_URL?" in done.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--set temperature=0", "--set"),
        ("--prompt {q}", "--prompt"),
        ("--system x", "--system"),
        ("--endpoint /v1/embeddings", "--endpoint"),
        ("--on-invalid fail", "--on-invalid"),
        ("--cache use", "--cache"),
        ("--namespace default", "--namespace"),
        ("--cache-ttl 1h", "--cache-ttl"),
        ("--window 1h", "--completion-window"),
        ("--shard-requests 10", "--shard-requests"),
        ("--shard-bytes 1MB", "--shard-bytes"),
        ("--name x", "--name"),
        ("--new", "--new"),
        ("--new --name x", "--name, --new"),
    ],
)
def test_a_batch_that_exists_takes_no_options_of_a_new_one(given: str, named: str) -> None:
    done = CliRunner().invoke(main, ["run", "--batch", "last", "--engine", "mock", "--model", "m", *given.split()])
    assert done.exit_code == 2
    assert done.stderr.strip().endswith(f"as it was submitted; leave out {named}.")
