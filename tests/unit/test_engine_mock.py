"""The mock engine: deterministic answers, and failures exactly as told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import isclose, sqrt
from typing import Any

import orjson
import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.mock import MockEngine, _latency
from synthgen.engines.registry import ENGINES, make_engine
from synthgen.errors import BadInput, EngineError, FatalError, PermanentError, RateLimited, RetryableError
from synthgen.request import LineRules, Request, parse_line
from synthgen.response import Reply


def made(options: Mapping[str, str] | None = None, **spec: Any) -> MockEngine:
    return MockEngine(EngineSpec("mock", options=options or {}, **spec))


def request(url: str = "/v1/chat/completions", custom_id: str = "a", line: int = 1, **body: Any) -> Request:
    given = body or {"messages": [{"role": "user", "content": "Why?"}]}
    row = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **given}}
    found = parse_line(orjson.dumps(row), line, LineRules())
    assert isinstance(found, Request), found
    return found


def ask(engine: MockEngine, asked: Request) -> Reply:
    return asyncio.run(engine.generate(asked))


def body_of(engine: MockEngine, asked: Request) -> Any:
    return orjson.loads(ask(engine, asked).body)


def fails(engine: MockEngine, asked: Request) -> bool:
    try:
        ask(engine, asked)
    except EngineError:
        return True
    return False


def test_the_same_request_gives_the_same_answer_whoever_asks_and_wherever_it_stands() -> None:
    first = ask(made(), request(custom_id="a", line=1))
    assert ask(made(), request(custom_id="b", line=9)) == first
    assert ask(made(), request(prompt="x", messages=[{"role": "user", "content": "How?"}])).body != first.body


def test_a_chat_answer_has_the_usual_shape_and_true_counts() -> None:
    reply = ask(made(), request())
    body = orjson.loads(reply.body)
    text = body["choices"][0]["message"]["content"]
    assert len(text.split()) == reply.completion_tokens == body["usage"]["completion_tokens"] > 0
    assert reply.prompt_tokens == body["usage"]["prompt_tokens"] > 0
    assert (body["model"], body["choices"][0]["finish_reason"]) == ("m", "stop")
    assert b"\n" not in reply.body


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_bounds_the_answer(limit: str) -> None:
    body = body_of(made(), request(messages=[{"role": "user", "content": "Why?"}], **{limit: 3}))
    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["finish_reason"] == "length"


def test_n_gives_as_many_different_choices() -> None:
    body = body_of(made(), request(messages=[{"role": "user", "content": "Why?"}], n=3))
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3


def test_a_completion_answers_each_of_its_prompts() -> None:
    assert len(body_of(made(), request("/v1/completions", prompt="once"))["choices"]) == 1
    assert len(body_of(made(), request("/v1/completions", prompt=["once", "twice"]))["choices"]) == 2
    assert len(body_of(made(), request("/v1/completions", prompt=[1, 2, 3]))["choices"]) == 1


def test_a_responses_answer_has_its_own_shape() -> None:
    body = body_of(made(), request("/v1/responses", input="Why?", max_output_tokens=2))
    assert (body["object"], body["status"], body["error"]) == ("response", "incomplete", None)
    assert len(body["output"][0]["content"][0]["text"].split()) == body["usage"]["output_tokens"] == 2


def test_embeddings_are_unit_vectors_that_belong_to_their_text() -> None:
    data = body_of(made(), request("/v1/embeddings", input=["x", "y", "x"], dimensions=5))["data"]
    vectors = [item["embedding"] for item in data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(len(vector) == 5 and isclose(sqrt(sum(v * v for v in vector)), 1.0) for vector in vectors)


def test_the_spec_sets_prices_provider_and_places() -> None:
    engine = made(input_price=2.0, output_price=4.0, provider="lab", in_flight=7)
    reply = ask(engine, request())
    assert reply.cost == pytest.approx((2 * reply.prompt_tokens + 4 * reply.completion_tokens) / 1e6)
    assert (engine.provider, engine.in_flight) == ("lab", 7)
    assert (made().provider, made().in_flight, ask(made(), request()).cost) == ("mock", 256, 0.0)


@pytest.mark.parametrize(("kind", "cost"), [("mock", 0.0), ("vllm", 0.0), ("server", 0.0), ("openai", None)])
def test_without_prices_only_an_engine_that_sends_a_bill_has_an_unknown_cost(kind: str, cost: float | None) -> None:
    assert EngineSpec(kind=kind, model="m").cost(10, 10) == cost


def test_the_named_ids_always_fail_and_no_others() -> None:
    engine = made({"fail_ids": "b,c"})
    assert [fails(engine, request(custom_id=who)) for who in "abcb"] == [False, True, True, True]


@pytest.mark.parametrize(
    ("status", "kind"),
    [("500", RetryableError), ("400", PermanentError), ("429", RateLimited), ("401", FatalError)],
)
def test_a_failure_is_what_an_http_reply_with_that_status_would_be(status: str, kind: type[EngineError]) -> None:
    with pytest.raises(kind) as caught:
        ask(made({"fail_ids": "a", "fail_status": status}), request())
    assert caught.value.status_code == int(status)
    assert orjson.loads(caught.value.body or b"")["error"]["type"] == "mock_failure"


def test_the_fail_rate_is_kept_over_many_requests_and_a_new_try_is_a_new_draw() -> None:
    engine = made({"fail_rate": "0.2"})
    many = [request(line=n, messages=[{"role": "user", "content": str(n)}]) for n in range(1000)]
    failed = [asked for asked in many if fails(engine, asked)]
    assert 150 < len(failed) < 250
    again = [asked for asked in failed if fails(engine, asked)]
    assert 0 < len(again) < len(failed) / 2


def test_which_tries_fail_is_the_same_in_every_process() -> None:
    many = [request(line=n, messages=[{"role": "user", "content": str(n)}]) for n in range(100)]
    first, second = made({"fail_rate": "0.5"}), made({"fail_rate": "0.5"})
    assert [fails(first, asked) for asked in many * 3] == [fails(second, asked) for asked in many * 3]


def test_a_latency_beyond_the_time_limit_is_a_time_out() -> None:
    with pytest.raises(RetryableError) as caught:
        ask(made({"latency": "100"}, timeout=0.001), request())
    assert caught.value.code == "request_timeout"


@pytest.mark.parametrize(
    ("text", "middle"),
    [("0.2", 0.2), ("uniform:1:3", 2.0), ("normal:2:0.5", 2.0), ("normal:2:0", 2.0), ("lognormal:2:1", 2.0)],
)
def test_a_latency_has_the_median_that_its_numbers_say(text: str, middle: float) -> None:
    latency = _latency(text)
    assert latency is not None
    assert latency(0.5) == pytest.approx(middle)
    assert 0.0 <= latency(0.001) <= latency(0.5) <= latency(0.999)


def test_no_latency_is_none_at_all() -> None:
    assert _latency("0") is None


@pytest.mark.parametrize(
    "options",
    [
        {"latency": "soon"},
        {"latency": "normal:1"},
        {"latency": "gamma:1:2"},
        {"latency": "-1"},
        {"latency": "nan"},
        {"fail_rate": "2"},
        {"fail_rate": "often"},
        {"fail_status": "200"},
        {"fail_status": "x"},
        {"speed": "9"},
    ],
)
def test_a_bad_option_is_named(options: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        made(options)


def test_many_requests_at_no_latency_leave_the_loop_its_turns() -> None:
    async def turns() -> int:
        engine, seen = made(), 0
        asked = request()

        async def count() -> None:
            nonlocal seen
            while True:
                seen += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for _ in range(1000):
            await engine.generate(asked)
        counting.cancel()
        return seen

    assert 5 < asyncio.run(turns()) < 100


def test_the_registry_makes_engines_by_kind_and_lists_them_for_an_unknown_one() -> None:
    assert isinstance(make_engine(EngineSpec("mock")), MockEngine)
    assert make_engine(EngineSpec("openai", base_url="http://h:1")).provider == "h:1"
    with pytest.raises(BadInput, match=", ".join(ENGINES)):
        make_engine(EngineSpec("gpt"))
