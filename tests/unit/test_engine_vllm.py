"""How vLLM is started and what is understood of what it says, without starting it."""

from __future__ import annotations

from typing import Any

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.vllm import VllmEngine, most_running
from synthgen.engines.vllm_arguments import argument
from synthgen.errors import BadInput
from synthgen.settings import Settings, load_settings
from tasks.wiring import engine_spec


def info(**sizes: Any) -> dict[str, Any]:
    scheduler, parallel = {"max_num_seqs": sizes["seqs"]}, {"data_parallel_size": sizes["engines"]}
    return {"vllm_config": {"scheduler_config": scheduler, "parallel_config": parallel}}


def test_each_of_several_engines_runs_as_many() -> None:
    assert most_running(info(seqs=128, engines=4)) == 512


@pytest.mark.parametrize("said", [{}, {"vllm_config": "as text"}, info(seqs=None, engines=1)])
def test_what_it_does_not_say_is_not_known(said: dict[str, Any]) -> None:
    assert most_running(said) is None


@pytest.mark.parametrize("given", [["--a-b", "7"], ["--a-b=7"], ["--a_b", "7"], ["--a-b", "1", "x", "--a-b", "7"]])
def test_an_argument_is_found_however_it_is_written(given: list[str]) -> None:
    assert argument("--a-b", given) == "7"


def test_its_arguments_come_last_and_untouched() -> None:
    engine = VllmEngine(EngineSpec("vllm", model="m", python="py", arguments=("--max-model-len", "8 k")))
    command = engine.command(EngineSpec("vllm", model="m", python="py", arguments=("--max-model-len", "8 k")))
    assert command[:5] == ["py", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
    assert command[-2:] == ["--max-model-len", "8 k"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "8000"),
        ("--port=8000",),
        ("--host", "0.0.0.0"),
        ("--uds", "/tmp/s"),
        ("--ssl_keyfile", "key"),
        ("--ssl-certfile=cert",),
        ("--headless",),
        ("--root_path=/x",),
        ("--max-num-seqs", "8", "--api-key", "k"),
    ],
)
def test_what_would_move_its_server_away_or_lock_it_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match=r"^vLLM's --[a-z-]+ cannot stand after --: the worker opens the server itself"):
        VllmEngine(EngineSpec("vllm", model="m", arguments=arguments))


def test_other_weights_than_those_that_the_worker_names_are_refused() -> None:
    with pytest.raises(BadInput, match="name the model with --model before it"):
        VllmEngine(EngineSpec("vllm", model="m", arguments=("--model=other",)))


def test_a_key_of_the_hosts_own_servers_does_not_lock_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    spec = EngineSpec("vllm", model="m")
    assert VllmEngine(spec).environ(spec)["VLLM_API_KEY"] == ""


def test_without_a_model_it_is_refused() -> None:
    with pytest.raises(BadInput, match="needs a model"):
        VllmEngine(EngineSpec("vllm"))


def test_its_server_is_its_own() -> None:
    with pytest.raises(BadInput, match="leave out --base-url"):
        VllmEngine(EngineSpec("vllm", model="m", base_url="http://x/v1"))


def test_an_address_that_is_meant_for_other_tools_does_not_keep_it_from_starting() -> None:
    settings = load_settings({"OPENAI_BASE_URL": "http://x/v1", "SYNTHGEN_ENGINE": "vllm", "SYNTHGEN_MODEL": "m"})
    VllmEngine(engine_spec(settings))


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_an_engine_option_is_refused_where_a_server_of_our_own_would_not_read_it(engine: str) -> None:
    settings = load_settings({"SYNTHGEN_ENGINE": engine})
    with pytest.raises(BadInput, match=rf"The {engine} engine has no use for --engine-option .*; leave it out"):
        engine_spec(settings.override({"engine_options": {"x": "y"}}))
    engine_spec(settings.override({"engine_options": {"x": "y"}}, origin="SYNTHGEN_ENGINE_OPTIONS"))


def test_a_worker_that_is_to_sleep_starts_a_vllm_that_can() -> None:
    drowsy = Settings(engine="vllm", model="m", idle_sleep=60.0, engine_arguments=("--seed", "1"))
    awake = Settings(engine="vllm", model="m", engine_arguments=("--seed", "1"))
    assert engine_spec(drowsy).arguments == ("--seed", "1", "--enable-sleep-mode")
    assert engine_spec(awake).arguments == ("--seed", "1")
