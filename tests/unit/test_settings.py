"""Where a setting comes from, what is refused in one sentence, and that no secret is shown."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from synthgen.engines.registry import make_engine
from synthgen.errors import BadInput, BadSetting
from synthgen.settings import CONFIG_NAME, Settings, load_settings, mask_url, read_secret, unread_variables
from tasks.wiring import engine_spec, limits_of, policy_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / CONFIG_NAME
    path.write_text(text)
    return path


# ---- precedence


def test_without_environment_and_file_the_defaults_hold(folder: Path) -> None:
    settings = load_settings({}, folder=folder)
    assert settings == Settings()
    assert set(settings.origins.values()) == {"default"}
    assert settings.embedded


def test_a_variable_goes_before_the_file_and_the_file_before_the_default(folder: Path) -> None:
    path = write(folder, 'pool = "from-file"\nwindow = 3\n')
    settings = load_settings({"SYNTHGEN_POOL": "from-variable"}, folder=folder)
    assert (settings.pool, settings.window, settings.lease) == ("from-variable", 3, 20.0)
    assert settings.origins["pool"] == "SYNTHGEN_POOL"
    assert settings.origins["window"] == str(path)
    assert settings.origins["lease"] == "default"


def test_an_empty_variable_counts_as_not_set(folder: Path) -> None:
    write(folder, 'pool = "from-file"')
    assert load_settings({"SYNTHGEN_POOL": ""}, folder=folder).pool == "from-file"


def test_openais_own_variables_serve_when_nothing_of_ours_is_set(folder: Path) -> None:
    theirs = {"OPENAI_API_KEY": "sk-theirs", "OPENAI_BASE_URL": "http://theirs/v1"}
    settings = load_settings(theirs, folder=folder)
    assert (settings.api_key, settings.base_url) == ("sk-theirs", "http://theirs/v1")
    assert settings.origins["api_key"] == "OPENAI_API_KEY"
    write(folder, 'api_key = "from-file"')
    assert load_settings(theirs, folder=folder).api_key == "from-file"
    assert load_settings({**theirs, "SYNTHGEN_API_KEY": "ours"}, folder=folder).api_key == "ours"


def test_the_file_may_be_elsewhere(folder: Path) -> None:
    path = folder / "other.toml"
    path.write_text("window = 4")
    assert load_settings({"SYNTHGEN_CONFIG": str(path)}, folder=folder / "nowhere").window == 4


def test_the_command_line_goes_before_all_and_what_it_does_not_give_stays(folder: Path) -> None:
    settings = load_settings({"SYNTHGEN_POOL": "variable", "SYNTHGEN_WINDOW": "3"}, folder=folder)
    changed = settings.override({"pool": "option", "window": None})
    assert (changed.pool, changed.window) == ("option", 3)
    assert changed.origins["pool"] == "command line"
    assert changed.origins["window"] == "SYNTHGEN_WINDOW"
    assert changed.origins["lease"] == "default"
    assert settings.pool == "variable"


def test_engine_options_are_a_table_in_the_file_and_json_in_a_variable(folder: Path) -> None:
    write(folder, '[engine_options]\nlatency = "0.1"\n')
    assert load_settings({}, folder=folder).engine_options == {"latency": "0.1"}
    settings = load_settings({"SYNTHGEN_ENGINE_OPTIONS": '{"latency": "0.2"}'}, folder=folder)
    assert settings.engine_options == {"latency": "0.2"}


@pytest.mark.parametrize("name", ["database_url", "broker_url", "storage_url"])
def test_any_address_of_a_server_ends_the_embedded_mode(name: str) -> None:
    assert not Settings(**{name: "x://somewhere"}).embedded


def test_objects_live_in_the_home_folder_unless_said_otherwise() -> None:
    assert Settings(home=Path("/h")).objects_url == str(Path("/h/objects"))
    assert Settings(storage_url="s3://bucket/prefix").objects_url == "s3://bucket/prefix"


def test_a_process_that_reads_the_environment_anew_finds_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", fresh)
    write(folder, 'pool = "from-file"\n[engine_options]\na = "1"\n')
    settings = load_settings({"SYNTHGEN_WINDOW": "3", "SYNTHGEN_HOME": "/h"}, folder=folder)
    settings.override({"lease": 8.5}).publish()
    again = load_settings(fresh, folder=folder / "nowhere")
    assert again.model_dump() == settings.override({"lease": 8.5}).model_dump()


def test_a_key_that_was_meant_for_openai_is_still_told_from_ours_after_publishing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"OPENAI_API_KEY": "sk-openai", "OPENAI_BASE_URL": "http://oai/v1", "SYNTHGEN_ENGINE": "litellm"}
    monkeypatch.setattr(os, "environ", environ)
    load_settings(folder=folder).override({"model": "anthropic/claude"}).publish()
    again = load_settings(folder=folder)
    assert again.api_key == "sk-openai"
    assert engine_spec(again).api_key is None
    assert engine_spec(again).base_url is None


def test_a_short_lease_goes_with_a_short_heartbeat(folder: Path) -> None:
    settings = load_settings({"SYNTHGEN_LEASE": "3", "SYNTHGEN_HEARTBEAT": "0.75"}, folder=folder)
    assert (settings.lease, settings.heartbeat) == (3.0, 0.75)
    with pytest.raises(BadSetting, match="quarter of the lease"):
        settings.override({"lease": 2.5})
    assert load_settings({"SYNTHGEN_LEASE": "2"}, folder=folder).heartbeat == 0.5


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_a_server_of_our_own_is_given_all_the_time_it_takes(engine: str) -> None:
    settings = Settings().override({"engine": engine})
    assert (engine_spec(settings).timeout, policy_of(settings).deadline) == (math.inf, math.inf)


def test_a_timeout_that_the_user_sets_holds_for_a_server_of_our_own_too() -> None:
    settings = Settings().override({"engine": "vllm", "request_timeout": 50.0})
    assert (engine_spec(settings).timeout, policy_of(settings).deadline) == (50.0, math.inf)
    assert policy_of(settings.override({"request_deadline": 70.0})).deadline == 70.0


@pytest.mark.parametrize(("timeout", "deadline"), [(None, 1200.0), (5.0, 900.0), (3600.0, 7200.0)])
def test_a_request_whose_first_try_times_out_has_time_for_a_second(timeout: float | None, deadline: float) -> None:
    settings = Settings().override({"engine": "openai", "request_timeout": timeout})
    assert policy_of(settings).deadline == deadline


def test_only_database_or_only_storage_shared_means_that_nothing_is_an_orphan() -> None:
    both = {"database_url": "postgresql://db/x", "storage_url": "s3://bucket"}
    assert limits_of(Settings(**both)).orphan_age == limits_of(Settings()).orphan_age == 86_400
    for name, url in both.items():
        assert limits_of(Settings(**{name: url})).orphan_age > 1e9


def test_an_engine_that_does_not_exist_is_told_before_its_options(folder: Path) -> None:
    chosen = load_settings({}, folder=folder).override({"engine": "vlm", "engine_arguments": ("--x",)})
    with pytest.raises(BadInput, match="Unknown engine 'vlm'"):
        make_engine(engine_spec(chosen))


# ---- what is refused


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"SYNTHGEN_WINDOW": "many"}, "SYNTHGEN_WINDOW: setting 'window' is 'many': "),
        ({"SYNTHGEN_WINDOW": "0"}, "SYNTHGEN_WINDOW: setting 'window' is '0': "),
        ({"SYNTHGEN_LEASE": "-1"}, "SYNTHGEN_LEASE: setting 'lease'"),
        (
            {"SYNTHGEN_HEARTBEAT": "6"},
            "SYNTHGEN_HEARTBEAT: setting 'heartbeat' is '6': it must be at most a quarter of the lease, which is 20.0",
        ),
        ({"SYNTHGEN_CHECKPOINT": "3"}, "SYNTHGEN_CHECKPOINT: setting 'checkpoint'"),
        ({"SYNTHGEN_ENGINE_OPTIONS": "{"}, "SYNTHGEN_ENGINE_OPTIONS: setting 'engine_options'"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_its_variable(
    folder: Path, environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(BadSetting) as told:
        load_settings(environ, folder=folder)
    assert str(told.value).startswith(sentence)
    assert "\n" not in str(told.value)


def test_a_model_without_a_name_in_the_file_is_told(folder: Path) -> None:
    (folder / "synthgen.toml").write_text('model = ""')
    with pytest.raises(BadSetting, match=r"synthgen.toml: setting 'model' is '': name a model, or leave it out"):
        load_settings({}, folder=folder)


def test_a_value_in_the_file_that_cannot_be_used_is_told_with_the_file(folder: Path) -> None:
    path = write(folder, 'window = "many"')
    with pytest.raises(BadSetting, match="setting 'window' is 'many'") as told:
        load_settings({}, folder=folder)
    assert str(path) in str(told.value)


def test_a_name_that_is_no_setting_is_told(folder: Path) -> None:
    write(folder, "windwo = 3")
    with pytest.raises(BadSetting, match="there is no setting 'windwo'"):
        load_settings({}, folder=folder)


def test_a_file_that_cannot_be_read_or_does_not_exist_is_told(folder: Path) -> None:
    path = write(folder, "window = ")
    with pytest.raises(BadSetting, match="cannot be read"):
        load_settings({}, folder=folder)
    path.write_bytes(b"\xff")
    with pytest.raises(BadSetting, match="cannot be read"):
        load_settings({}, folder=folder)
    with pytest.raises(BadSetting, match="does not exist"):
        load_settings({"SYNTHGEN_CONFIG": str(folder / "none.toml")}, folder=folder)


def test_the_command_line_is_checked_like_everything_else() -> None:
    with pytest.raises(BadSetting, match="command line: setting 'in_flight' is 0"):
        Settings().override({"in_flight": 0})


def test_variables_that_nothing_reads_are_found() -> None:
    environ = {"SYNTHGEN_POOL": "a", "SYNTHGEN_CONFIG": "b", "SYNTHGEN_PULL": "c", "PATH": "d"}
    assert unread_variables(environ) == ["SYNTHGEN_PULL"]


def test_settings_do_not_change_once_made() -> None:
    settings: Any = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.pool = "other"


def test_a_secret_named_by_a_variable_is_read_or_missed_in_one_sentence() -> None:
    assert read_secret("KEY", {"KEY": "sk-1"}) == "sk-1"
    with pytest.raises(BadSetting, match="KEY, which is not set"):
        read_secret("KEY", {})


# ---- what is shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:pa%3Ass@host:5672//vhost", "amqp://user:********@host:5672//vhost"),
        ("redis://:secret@host/0", "redis://:********@host/0"),
        ("postgresql://host/db?user=a&password=b&sslmode=c", "postgresql://host/db?user=a&password=********&sslmode=c"),
        ("postgresql:///db?host=/run", "postgresql:///db?host=/run"),
        ("https://host/v1?api_key=sk-1", "https://host/v1?api_key=********"),
        ("amqp://guest@host//", "amqp://guest@host//"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("/some/folder", "/some/folder"),
        ("http://[broken:pw@host", "********"),
    ],
)
def test_the_password_of_an_address_is_hidden_and_the_rest_stays(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_no_secret_is_shown() -> None:
    settings = Settings(
        api_key="sk-hush",
        database_url="postgresql://me:hush@host/db",
        engine_options={"aws_secret_access_key": "hush", "region": "eu"},
    )
    shown = settings.shown()
    assert set(shown) == set(Settings.model_fields)
    assert not [name for name, text in shown.items() if text and "hush" in text]
    assert shown["database_url"] == "postgresql://me:********@host/db"
    assert shown["engine_options"] == '{"aws_secret_access_key": "********", "region": "eu"}'
    assert shown["broker_url"] is None


def test_a_key_of_the_wrong_type_is_not_shown_in_the_message(folder: Path) -> None:
    write(folder, "api_key = 12345")
    with pytest.raises(BadSetting) as told:
        load_settings({}, folder=folder)
    assert "12345" not in str(told.value)
