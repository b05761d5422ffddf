"""The parts of the OpenAI engine that need no network: addresses, names, usage."""

from __future__ import annotations

import asyncio

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.openai import OpenAIEngine, base_url, one_line, provider_of
from synthgen.errors import BadInput, FatalError


@pytest.mark.parametrize(
    ("given", "chat"),
    [
        ("http://h:8000", "http://h:8000/v1/chat/completions"),
        ("http://h:8000/", "http://h:8000/v1/chat/completions"),
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
        ("https://host/prefix/v1/", "https://host/prefix/v1/chat/completions"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai/chat/completions"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1/chat/completions"),
    ],
)
def test_a_bare_host_gets_v1_and_a_given_path_stays(given: str, chat: str) -> None:
    assert str(base_url(given) / "chat/completions") == chat


@pytest.mark.parametrize("given", ["", "localhost:8000", "ftp://h", "http://", "http://h:99999999", "/v1"])
def test_what_is_no_address_is_named(given: str) -> None:
    with pytest.raises(BadInput, match="Base URL"):
        base_url(given)


def test_the_provider_is_host_and_port_unless_named() -> None:
    assert provider_of(base_url("https://api.example.com/v1")) == "api.example.com"
    assert provider_of(base_url("http://h:8000")) == "h:8000"
    assert OpenAIEngine(EngineSpec("openai")).provider == "api.openai.com"
    assert OpenAIEngine(EngineSpec("openai", base_url="http://h:8000", provider="lab")).provider == "lab"


def test_options_are_refused_because_there_are_none() -> None:
    with pytest.raises(BadInput, match="latency"):
        OpenAIEngine(EngineSpec("openai", options={"latency": "1"}))


def test_openai_itself_is_not_asked_without_a_key() -> None:
    with pytest.raises(FatalError, match="SYNTHGEN_API_KEY or OPENAI_API_KEY"):
        asyncio.run(OpenAIEngine(EngineSpec("openai")).start())


def test_a_proxy_is_used_for_other_hosts_and_never_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    proxies = {
        host: OpenAIEngine(EngineSpec("openai", base_url=f"http://{host}"))._proxy
        for host in ("far.example", "inside.example", "127.0.0.1:8000", "localhost")
    }
    assert proxies == {
        "far.example": "http://proxy:3128",
        "inside.example": None,
        "127.0.0.1:8000": None,
        "localhost": None,
    }


def test_a_body_on_one_line_is_passed_on_as_it_came() -> None:
    assert one_line(b'{ "a":  1.0 }', {"a": 1.0}) == b'{ "a":  1.0 }'
    assert one_line(b'{\n"a": 1}\n', {"a": 1}) == b'{"a":1}'
