"""The OpenAI-compatible engine against a real HTTP server."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.lane import Lane
from synthgen.engines.openai import OpenAIEngine
from synthgen.errors import EngineError, FatalError, PermanentError, RateLimited, RetryableError, Unreachable
from synthgen.request import LineRules, Request, parse_line
from synthgen.response import Reply
from synthgen.retry import RetryPolicy
from tests.stub_llm import StubLLM, answer_to


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    with StubLLM() as server:
        yield server


def chat(prompt: str, line: int = 1) -> Request:
    found = parse_line(orjson.dumps({"prompt": prompt}), line, LineRules(model="small"))
    assert isinstance(found, Request)
    return found


def at(url: str, **body: object) -> Request:
    row = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "small", **body}}
    found = parse_line(orjson.dumps(row), 1, LineRules())
    assert isinstance(found, Request), found
    return found


def ask(stub: StubLLM, request: Request, **spec: object) -> Reply:
    async def once() -> Reply:
        engine = OpenAIEngine(EngineSpec("openai", **{"base_url": stub.url, **spec}))  # type: ignore[arg-type]  # by name
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


def test_a_chat_request_gives_the_servers_bytes_its_usage_and_its_id(stub: StubLLM) -> None:
    reply = ask(stub, chat("Hello?"), input_price=1.0, output_price=2.0)
    body = orjson.loads(reply.body)
    assert body["choices"][0]["message"]["content"] == answer_to("Hello?")
    assert (reply.prompt_tokens, reply.completion_tokens) == (2, 2)
    assert reply.cost == pytest.approx(6e-6)
    assert (reply.status_code, reply.request_id) == (200, "req_1")


def test_without_prices_the_cost_is_unknown(stub: StubLLM) -> None:
    assert ask(stub, chat("Hello?")).cost is None


@pytest.mark.parametrize(
    ("url", "body", "tokens"),
    [
        ("/v1/completions", {"prompt": "abcd"}, (2, 2)),
        ("/v1/embeddings", {"input": "abcd"}, (2, 0)),
        ("/v1/responses", {"input": "abcd"}, (2, 2)),
    ],
)
def test_the_other_endpoints_answer_and_count_tokens_in_their_own_words(
    stub: StubLLM, url: str, body: dict[str, object], tokens: tuple[int, int]
) -> None:
    reply = ask(stub, at(url, **body))
    assert (reply.prompt_tokens, reply.completion_tokens) == tokens
    assert orjson.loads(reply.body)["model"] == "small"


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_the_base_url_works_with_and_without_v1(stub: StubLLM, tail: str) -> None:
    assert ask(stub, chat("Hello?"), base_url=stub.url.removesuffix("/v1") + tail).status_code == 200


def test_the_key_and_the_engines_model_are_sent(stub: StubLLM) -> None:
    nameless = parse_line(b'{"prompt": "Hello?"}', 1, LineRules())
    assert isinstance(nameless, Request)
    ask(stub, nameless, api_key="sk-1", model="big")
    assert stub.headers[-1]["Authorization"] == "Bearer sk-1"
    assert stub.bodies[-1]["model"] == "big"
    assert "model" not in nameless.body


def test_a_reply_over_several_lines_is_brought_onto_one(stub: StubLLM) -> None:
    body = ask(stub, chat("[[stub pretty=1]]")).body
    assert b"\n" not in body
    assert orjson.loads(body)["object"] == "chat.completion"


@pytest.mark.parametrize("fate", ["broken", "truncate", "empty", "hollow", "abort"])
def test_a_200_without_a_whole_json_body_may_be_asked_again(stub: StubLLM, fate: str) -> None:
    error = refused(stub, chat(f"[[stub status={fate}]]"))
    assert isinstance(error, RetryableError)
    assert error.code == "bad_reply"


def test_a_200_that_answers_nothing_is_told_with_what_it_says(stub: StubLLM) -> None:
    assert refused(stub, chat("[[stub status=hollow]]")).message == (
        f'{stub.url} answered HTTP 200, but the body is without choices: {{"detail":"busy"}}.'
    )


def test_an_error_inside_a_200_counts_as_the_status_it_names(stub: StubLLM) -> None:
    assert isinstance(refused(stub, chat("[[stub status=error code=429]]")), RateLimited)
    assert isinstance(refused(stub, chat("[[stub status=error code=400]]")), PermanentError)
    unnamed = refused(stub, chat("[[stub status=error code=7]]"))
    assert (type(unnamed), unnamed.code) == (RetryableError, "bad_reply")


def test_a_refusal_keeps_status_code_and_body(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub status=400 code=context_length_exceeded]]"))
    assert isinstance(error, PermanentError)
    assert (error.code, error.status_code) == ("context_length_exceeded", 400)
    assert orjson.loads(error.body or b"")["error"]["code"] == "context_length_exceeded"


def test_a_rate_limit_tells_how_long_to_wait(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub status=429 retry_after=7]]"))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 7.0


def test_a_wrong_key_is_fatal_and_is_not_shown() -> None:
    with StubLLM(key="sk-right") as stub:
        error = refused(stub, chat("Hello?"), api_key="sk-wrong")
    assert isinstance(error, FatalError)
    assert "SYNTHGEN_API_KEY" in error.message
    assert f"127.0.0.1:{stub.port}" in error.message
    assert "sk-wrong" not in error.message


def test_an_unknown_model_is_fatal_and_named() -> None:
    with StubLLM(models=("big",)) as stub:
        error = refused(stub, chat("Hello?"))
    assert isinstance(error, FatalError)
    assert "'small'" in error.message


def test_a_dropped_connection_is_no_reply(stub: StubLLM) -> None:
    assert isinstance(refused(stub, chat("[[stub status=drop]]")), Unreachable)


def test_nobody_listening_is_no_reply() -> None:
    with StubLLM() as stub:
        pass
    error = refused(stub, chat("Hello?"))
    assert isinstance(error, Unreachable)
    assert f"127.0.0.1:{stub.port}" in error.message


def test_a_name_that_nobody_knows_is_no_reply(stub: StubLLM) -> None:
    assert isinstance(refused(stub, chat("Hello?"), base_url="http://no-such-host.invalid"), Unreachable)


def test_a_reply_that_takes_too_long_is_a_time_out(stub: StubLLM) -> None:
    error = refused(stub, chat("[[stub latency=5]]"), timeout=0.1)
    assert (type(error), error.code) == (RetryableError, "request_timeout")


def test_without_a_timeout_a_reply_may_take_as_long_as_it_likes(stub: StubLLM) -> None:
    assert ask(stub, chat("[[stub latency=0.5]]"), timeout=math.inf).status_code == 200


def test_a_server_that_does_not_speak_http_sends_a_bad_reply(stub: StubLLM) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-hello\r\n\r\n")
            await writer.drain()
            writer.close()

        async def once() -> Reply:
            listening = await asyncio.start_server(babble, sock=server)
            engine = OpenAIEngine(EngineSpec("openai", base_url=f"http://127.0.0.1:{server.getsockname()[1]}"))
            await engine.start()
            try:
                return await engine.generate(chat("Hello?"))
            finally:
                await engine.close()
                listening.close()

        with pytest.raises(RetryableError) as caught:
            asyncio.run(once())
    assert caught.value.code == "bad_reply"


def check_health(base_url: str, **spec: str) -> None:
    async def once() -> None:
        engine = OpenAIEngine(EngineSpec("openai", base_url=base_url, **spec))  # type: ignore[arg-type]  # strings only
        await engine.start()
        try:
            await engine.health()
        finally:
            await engine.close()

    asyncio.run(once())


def test_health_asks_nothing_of_a_model_and_accepts_any_reply(stub: StubLLM) -> None:
    check_health(stub.url)
    check_health(stub.url + "/no/such/path")
    assert stub.counts()["requests"] == 0


def test_health_tells_a_wrong_key_from_a_server_that_is_gone() -> None:
    with StubLLM(key="sk-right") as stub:
        with pytest.raises(FatalError, match="SYNTHGEN_API_KEY"):
            check_health(stub.url, api_key="sk-wrong")
        check_health(stub.url, api_key="sk-right")
    with pytest.raises(Unreachable, match="cannot be reached"):
        check_health(stub.url)


def test_through_the_lane_every_prompt_is_answered_in_spite_of_failures() -> None:
    prompts = [f"Question {n}" for n in range(300)]
    prompts += [
        "[[stub status=drop,200]] a",
        "[[stub status=429,200 retry_after=0.05]] b",
        "[[stub status=truncate,200]]",
    ]
    with StubLLM(fail_rate=0.1, fail_status=503) as stub:
        engine = OpenAIEngine(EngineSpec("openai", base_url=stub.url))
        lane = Lane(engine, policy=RetryPolicy(attempts=8, base=0.01), in_flight=32)
        lane.start()
        asking = lane.ask([chat(prompt, line) for line, prompt in enumerate(prompts, start=1)])
        while not asking.finished:
            assert asking.wait(30)
        found = asking.take()
        lane.close()
        counts = stub.counts()
    assert len(found) == len(prompts)
    assert all(response.succeeded for response in found)
    for response in found:
        text = orjson.loads(response.body or b"")["choices"][0]["message"]["content"]
        assert text == answer_to(prompts[response.line - 1])
        assert counts["asked"][prompts[response.line - 1]] == response.attempts
    assert counts["answered"] == len(prompts)
    assert counts["most_at_once"] <= 32
