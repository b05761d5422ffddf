"""The parts of the OpenAI engine that need no network: addresses, names, usage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.openai import OpenAIEngine, base_url, fault_of, one_line, provider_of
from synthgen.errors import BadInput, FatalError
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, INPUT_FIELD, RESPONSES


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


def said(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}]}


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, said(content="Hello.")),
        (CHAT, said(content="")),
        (CHAT, said(content=None, tool_calls=[{"id": "t1"}])),
        (CHAT, said(content=None, refusal="No.")),
        (CHAT, {"choices": 2 * said(content="Hello.")["choices"]}),
        (COMPLETIONS, {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}),
        (EMBEDDINGS, {"data": [{"embedding": [0.5]}, {"embedding": "AAAAPw=="}]}),
        (RESPONSES, {"status": "completed", "output": [{"type": "message"}]}),
        (RESPONSES, {"status": "incomplete", "output": []}),
        (RESPONSES, {"output": [{"type": "message"}]}),
        ("/v1/something/else", {}),
    ],
)
def test_an_answer_is_one_even_where_it_says_little(url: str, body: dict[str, Any]) -> None:
    assert fault_of(body, url) is None


@pytest.mark.parametrize("url", INPUT_FIELD)
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"detail": "upstream overloaded"},
        {"choices": [], "data": [], "output": []},
        {"choices": None, "data": None, "output": None},
        {"choices": {"a": 1}, "data": "a", "output": 1},
        {"choices": ["a"], "data": [None], "output": [1]},
        {"choices": [{"finish_reason": None, "message": None, "text": None}], "data": [{}], "output": [{}]},
    ],
)
def test_an_object_that_answers_nothing_is_no_answer_of_any_endpoint(url: str, body: dict[str, Any]) -> None:
    assert "without" in (fault_of(body, url) or "")


@pytest.mark.parametrize("status", ["queued", "in_progress", "cancelled", "failed"])
def test_a_response_that_has_not_come_to_its_end_is_no_answer(status: str) -> None:
    assert fault_of({"status": status, "output": [{"type": "message"}]}, RESPONSES)
