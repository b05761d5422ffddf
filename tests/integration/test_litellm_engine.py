"""The LiteLLM engine against a real HTTP server. One module, because importing LiteLLM takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.lane import Lane
from synthgen.engines.litellm import LiteLLMEngine
from synthgen.errors import EngineError, FatalError, PermanentError, RateLimited, RetryableError, Unreachable
from synthgen.request import LineRules, Request, parse_line
from synthgen.response import Reply
from synthgen.retry import RetryPolicy
from tests.stub_llm import StubLLM, answer_to

# LiteLLM leaves connectors to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    with StubLLM() as server:
        yield server


def at(url: str, **body: object) -> Request:
    row = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "openai/small", **body}}
    found = parse_line(orjson.dumps(row), 1, LineRules())
    assert isinstance(found, Request), found
    return found


def chat(prompt: str, **body: object) -> Request:
    return at("/v1/chat/completions", messages=[{"role": "user", "content": prompt}], **body)


def ask(stub: StubLLM, request: Request, **spec: object) -> Reply:
    async def once() -> Reply:
        given = {"base_url": stub.url, "api_key": "sk-1", **spec}
        engine = LiteLLMEngine(EngineSpec("litellm", **given))  # type: ignore[arg-type]  # by name
        await engine.start()
        try:
            return await engine.generate(request)
        finally:
            await engine.close()

    return asyncio.run(once())


def refused(stub: StubLLM, request: Request, **spec: object) -> EngineError:
    with pytest.raises(EngineError) as caught:
        ask(stub, request, **spec)
    return caught.value


def test_a_chat_request_is_answered_in_openais_shape(stub: StubLLM) -> None:
    reply = ask(stub, chat("Hello?"))
    body = orjson.loads(reply.body)
    assert body["choices"][0]["message"]["content"] == answer_to("Hello?")
    assert (reply.prompt_tokens, reply.completion_tokens) == (2, 2)
    assert (reply.cost, reply.request_id) == (None, "req_1")
    assert b"\n" not in reply.body
    assert stub.bodies[-1]["model"] == "small"


def test_completions_and_embeddings_are_answered_too(stub: StubLLM) -> None:
    text = ask(stub, at("/v1/completions", model="text-completion-openai/small", prompt="abcd"))
    assert orjson.loads(text.body)["choices"][0]["text"] == answer_to("abcd")
    vectors = ask(stub, at("/v1/embeddings", input="abcd"))
    assert orjson.loads(vectors.body)["data"][0]["embedding"] == [0.6, 0.8]
    assert (vectors.prompt_tokens, vectors.completion_tokens) == (2, 0)


def test_a_responses_request_is_answered_or_names_the_package_that_it_needs(stub: StubLLM) -> None:
    asked = at("/v1/responses", input="abcd")
    if find_spec("mcp") is None:
        error = refused(stub, asked)
        assert (type(error), error.code) == (FatalError, "no_package")
        assert "'mcp'" in error.message
    else:
        reply = ask(stub, asked)
        assert orjson.loads(reply.body)["output"][0]["content"][0]["text"] == answer_to("abcd")
        assert (reply.prompt_tokens, reply.completion_tokens) == (2, 2)


def test_the_cost_is_by_litellms_list_or_by_the_specs_prices(stub: StubLLM) -> None:
    known = chat("Hello?", model="openai/gpt-4o")
    listed = ask(stub, known).cost
    assert listed is not None
    assert 0 < listed < 0.001
    assert ask(stub, known, input_price=1e6, output_price=0.0).cost == pytest.approx(2.0)


def test_litellm_does_not_retry_by_itself(stub: StubLLM) -> None:
    assert type(refused(stub, chat("[[stub status=503]]"))) is RetryableError
    assert isinstance(refused(stub, chat("[[stub status=429]]")), RateLimited)
    assert stub.counts()["requests"] == 2


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        ("status=400 code=bad_thing", PermanentError, "bad_thing"),
        ("status=422", PermanentError, "stub_error"),
        ("status=401 code=invalid_api_key", FatalError, "invalid_api_key"),
        ("status=402", FatalError, "stub_error"),
        ("status=403", FatalError, "stub_error"),
        ("status=403 code=content_filter", PermanentError, "content_filter"),
        ("status=404", FatalError, "stub_error"),
        ("status=429 code=insufficient_quota", FatalError, "insufficient_quota"),
        ("status=408", RetryableError, "request_timeout"),
        ("status=409", RetryableError, "stub_error"),
        ("status=500", RetryableError, "stub_error"),
        ("status=broken", RetryableError, "InternalServerError"),
        ("status=drop", Unreachable, "connection_error"),
    ],
)
def test_errors_become_the_same_as_with_the_openai_engine(
    stub: StubLLM, script: str, kind: type[EngineError], code: str
) -> None:
    error = refused(stub, chat(f"[[stub {script}]]"))
    assert (type(error), error.code) == (kind, code)


def test_a_200_that_answers_nothing_may_be_asked_again(stub: StubLLM) -> None:
    hollow = "[[stub status=hollow]]"
    for asked in (
        at("/v1/completions", model="text-completion-openai/small", prompt=hollow),
        at("/v1/embeddings", input=hollow),
    ):
        error = refused(stub, asked)
        assert (type(error), error.code) == (RetryableError, "bad_reply")


def test_a_rate_limit_tells_how_long_to_wait(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub status=429 retry_after=7]]"))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 7.0


def test_a_refusal_keeps_the_providers_body(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub status=400 code=bad_thing]]"))
    assert error.status_code == 400
    assert orjson.loads(error.body or b"")["error"]["code"] == "bad_thing"


def test_a_reply_that_takes_too_long_is_a_time_out(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub latency=2]]"), timeout=0.3)
    assert (type(error), error.code) == (RetryableError, "request_timeout")


def test_nobody_listening_is_no_reply(stub: StubLLM) -> None:
    assert isinstance(refused(stub, chat("Hello?"), base_url="http://127.0.0.1:1/v1"), Unreachable)


def test_a_parameter_that_the_model_does_not_take_is_refused_and_not_dropped(stub: StubLLM) -> None:
    error = refused(stub, chat("Hello?", model="openai/o3-mini", temperature=0.3))
    assert isinstance(error, PermanentError)
    assert "temperature" in error.message
    assert stub.counts()["requests"] == 0


def test_a_model_without_a_known_provider_is_fatal_at_the_start(stub: StubLLM) -> None:
    error = refused(stub, chat("Hello?"), model="nosuch", base_url=None)
    assert isinstance(error, FatalError)
    assert "'nosuch'" in error.message
    assert "PROVIDER/MODEL" in error.message


def test_through_the_lane_every_prompt_is_answered_in_spite_of_failures() -> None:
    with StubLLM(fail_rate=0.2, fail_status=503) as stub:
        engine = LiteLLMEngine(EngineSpec("litellm", base_url=stub.url, api_key="sk-1", provider="lab"))
        lane = Lane(engine, policy=RetryPolicy(attempts=8, base=0.01), in_flight=16)
        lane.start()
        asking = lane.ask([chat(f"Question {n}") for n in range(40)])
        while not asking.finished:
            assert asking.wait(30)
        found = asking.take()
        lane.close()
        counts = stub.counts()
    assert lane.provider == "lab"
    assert [response for response in found if not response.succeeded] == []
    assert len(found) == counts["answered"] == 40
    assert sum(response.attempts for response in found) == counts["requests"]
