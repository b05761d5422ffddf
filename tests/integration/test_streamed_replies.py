"""The OpenAI-compatible engine when it measures: it streams over real HTTP, and nobody sees that in the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.openai import OpenAIEngine
from synthgen.errors import EngineError, PermanentError, RetryableError
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, LineRules, Request, parse_line
from synthgen.response import Reply
from tests.stub_llm import StubLLM


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    with StubLLM() as server:
        yield server


def at(url: str, **body: object) -> Request:
    row = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "small", **body}}
    found = parse_line(orjson.dumps(row), 1, LineRules())
    assert isinstance(found, Request), found
    return found


def chat(prompt: str) -> Request:
    return at(CHAT, messages=[{"role": "user", "content": prompt}])


def ask(stub: StubLLM, request: Request, *, measured: bool = True) -> Reply:
    async def once() -> Reply:
        engine = OpenAIEngine(EngineSpec("openai", base_url=stub.url, measure_ttft=measured))
        await engine.start()
        try:
            return await engine.generate(request)
        finally:
            await engine.close()

    return asyncio.run(once())


REQUESTS: list[dict[str, Any]] = [
    {"url": CHAT, "messages": [{"role": "user", "content": "Hello?"}]},
    {"url": COMPLETIONS, "prompt": "Hello?"},
    {"url": EMBEDDINGS, "input": "Hello?"},
    {"url": RESPONSES, "input": "Hello?"},
]


@pytest.mark.parametrize("given", REQUESTS, ids=lambda given: given["url"])
def test_the_answer_is_the_same_measured_or_not(stub: StubLLM, given: dict[str, Any]) -> None:
    plain, measured = (ask(stub, at(**given), measured=measured) for measured in (False, True))
    assert orjson.loads(measured.body) == orjson.loads(plain.body)
    assert (measured.prompt_tokens, measured.completion_tokens) == (plain.prompt_tokens, plain.completion_tokens)
    assert plain.ttft_ms is plain.itl_ms is None


def test_times_to_and_between_tokens_are_measured(stub: StubLLM) -> None:
    reply = ask(stub, chat("[[stub latency=0.05 gap=0.02]]"))
    assert reply.request_id == "req_1"
    assert reply.ttft_ms is not None
    assert reply.ttft_ms >= 50
    assert reply.itl_ms is not None
    assert reply.itl_ms >= 20


@pytest.mark.parametrize("url", [EMBEDDINGS, RESPONSES])
def test_endpoints_that_do_not_stream_are_asked_plainly(stub: StubLLM, url: str) -> None:
    reply = ask(stub, at(url, input="Hello?"))
    assert "stream" not in stub.bodies[-1]
    assert reply.ttft_ms is None


@pytest.mark.parametrize("fate", ["truncate", "abort", "drop", "error"])
def test_a_stream_that_breaks_off_may_be_asked_again(stub: StubLLM, fate: str) -> None:
    with pytest.raises(EngineError) as caught:
        ask(stub, chat(f"[[stub status={fate}]]"))
    assert isinstance(caught.value, RetryableError)
    assert caught.value.code == {"drop": "connection_error", "error": "http_502"}.get(fate, "bad_reply")


@pytest.mark.parametrize("fate", ["broken", "empty", "hollow"])
def test_a_server_that_does_not_stream_is_judged_by_its_body(stub: StubLLM, fate: str) -> None:
    with pytest.raises(RetryableError) as caught:
        ask(stub, chat(f"[[stub status={fate}]]"))
    assert caught.value.code == "bad_reply"


def test_a_refusal_means_the_same_measured_or_not(stub: StubLLM) -> None:
    with pytest.raises(PermanentError) as caught:
        ask(stub, chat("[[stub status=400 code=context_length_exceeded]]"))
    assert caught.value.code == "context_length_exceeded"
