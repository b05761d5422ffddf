"""The line that an outcome becomes, and the outcome that is read back from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.response import (
    CANCELLED,
    EXPIRED,
    NEVER_RAN,
    TIMED_OUT,
    Response,
    engine_label,
    never_ran,
    output_line,
    read_output_line,
    usage_of,
)

BODY = b'{"id":"chatcmpl-1","choices":[{"index":0}],"usage":{"prompt_tokens":9,"completion_tokens":3}}'
REFUSAL = b'{"error":{"message":"context too long","code":"context_length_exceeded"}}'

SUCCESS = Response(
    line=7,
    custom_id="row-1",
    body=BODY,
    status_code=200,
    prompt_tokens=9,
    completion_tokens=3,
    cost=0.25,
    attempts=2,
    latency_ms=120,
    engine="vllm/0.32.0@9f3c1b",
    model="qwen3-8b",
    request_id="req_55",
)
REFUSED = replace(
    SUCCESS,
    body=REFUSAL,
    status_code=400,
    prompt_tokens=0,
    completion_tokens=0,
    cost=None,
    error_code="context_length_exceeded",
    error_message="context too long",
)
TIMEOUT = replace(
    REFUSED, body=None, status_code=None, request_id=None, error_code=TIMED_OUT, error_message="No reply within 600 s."
)


def written(response: Response) -> dict[str, Any]:
    line = output_line("batch_9f", response)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value = orjson.loads(line)
    assert isinstance(value, dict)
    return value


def test_a_success_has_openais_shape_and_one_object_of_our_own() -> None:
    assert written(SUCCESS) == {
        "id": "batch_req_9f_7",
        "custom_id": "row-1",
        "response": {"status_code": 200, "request_id": "req_55", "body": orjson.loads(BODY)},
        "error": None,
        "synthgen": {
            "line": 7,
            "cached": False,
            "attempts": 2,
            "latency_ms": 120,
            "cost": 0.25,
            "engine": "vllm",
            "engine_version": "0.32.0",
            "model": "qwen3-8b",
            "revision": "9f3c1b",
        },
    }


def test_a_line_says_with_which_parameters_and_how_fast_it_was_made() -> None:
    measured = replace(SUCCESS, ttft_ms=81.5, itl_ms=12.25)
    ours = orjson.loads(output_line("batch_9f", measured, {"temperature": 0.5, "seed": 7}))["synthgen"]
    assert (ours["parameters"], ours["ttft_ms"], ours["itl_ms"]) == ({"temperature": 0.5, "seed": 7}, 81.5, 12.25)


def test_what_is_not_known_of_the_engine_is_null() -> None:
    ours = written(replace(SUCCESS, engine="openai"))["synthgen"]
    assert (ours["engine"], ours["engine_version"], ours["revision"]) == ("openai", None, None)


def test_parameters_nested_as_deeply_as_a_request_may_be_can_still_be_written() -> None:
    deep: dict[str, Any] = {}
    for _ in range(250):
        deep = {"a": deep}
    assert orjson.loads(output_line("batch_9f", SUCCESS, deep))["synthgen"]["parameters"] == deep


@pytest.mark.parametrize(
    ("version", "revision", "label"),
    [(None, None, "mock"), ("0.32.0", "", "mock/0.32.0"), (None, "ab", "mock@ab"), ("1", "ab", "mock/1@ab")],
)
def test_a_label_of_an_engine_leaves_out_what_is_not_known(
    version: str | None, revision: str | None, label: str
) -> None:
    assert engine_label("mock", version, revision) == label


def test_the_providers_bytes_are_passed_on_as_they_came() -> None:
    body = b'{ "b": 1.0,  "a": "\\u00e9" }'
    assert body in output_line("batch_9f", replace(SUCCESS, body=body))


def test_a_refusal_keeps_its_status_and_body_and_has_no_error_of_its_own() -> None:
    value = written(REFUSED)
    assert value["error"] is None
    assert value["response"] == {"status_code": 400, "request_id": "req_55", "body": orjson.loads(REFUSAL)}
    assert value["synthgen"]["error_code"] == "context_length_exceeded"


@pytest.mark.parametrize("code", [CANCELLED, EXPIRED])
def test_a_request_that_never_ran_has_no_response_and_says_why(code: str) -> None:
    value = written(never_ran(3, "row-3", code))
    assert value["response"] is None
    assert value["error"] == {"code": code, "message": NEVER_RAN[code]}
    assert value["synthgen"]["attempts"] == 0


def test_without_a_reply_the_error_says_why() -> None:
    value = written(TIMEOUT)
    assert value["response"] is None
    assert value["error"] == {"code": "request_timeout", "message": "No reply within 600 s."}


def test_a_status_without_a_body_counts_as_no_reply() -> None:
    value = written(replace(REFUSED, body=None, status_code=503, error_code="http_503"))
    assert value["response"] is None
    assert value["error"]["code"] == "http_503"


def test_a_failure_despite_status_200_has_an_error_so_that_no_reader_takes_it_for_good() -> None:
    value = written(replace(REFUSED, body=BODY, status_code=200, error_code="bad_reply", error_message="No choices."))
    assert value["error"] == {"code": "bad_reply", "message": "No choices."}


@pytest.mark.parametrize(
    "response",
    [
        SUCCESS,
        replace(SUCCESS, cached=True, attempts=0, latency_ms=0),
        replace(SUCCESS, cost=None, request_id=None),
        replace(SUCCESS, engine="openai"),
        replace(SUCCESS, engine="openai@main", ttft_ms=81.5),
        replace(SUCCESS, engine="openai/1.0", ttft_ms=81.5, itl_ms=12.25),
        REFUSED,
        replace(REFUSED, body=b"null", error_code="http_500", status_code=500),
        TIMEOUT,
        never_ran(3, "row-3", CANCELLED),
        replace(REFUSED, body=BODY, status_code=200, error_code="bad_reply", prompt_tokens=9, completion_tokens=3),
    ],
)
def test_a_line_is_read_back_as_the_response_that_wrote_it(response: Response) -> None:
    assert read_output_line(output_line("batch_9f", response)) == response


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(names.filter(bool), st.integers(1, 2**40), names, st.floats(0, 1e6), st.booleans())
def test_any_custom_id_and_model_survive_the_round_trip(
    custom_id: str, line: int, model: str, cost: float, cached: bool
) -> None:
    response = replace(SUCCESS, custom_id=custom_id, line=line, model=model, cost=cost, cached=cached)
    assert read_output_line(output_line("batch_9f", response)) == response


def test_a_body_on_another_way_of_writing_keeps_its_meaning() -> None:
    response = replace(SUCCESS, body=b'{ "usage" : null, "a": 1 }', prompt_tokens=0, completion_tokens=0)
    back = read_output_line(output_line("batch_9f", response))
    assert back.body is not None
    assert orjson.loads(back.body) == {"usage": None, "a": 1}
    assert (back.prompt_tokens, back.completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3}, (3, 0)),
        ({"prompt_tokens": None}, (0, 0)),
        ({}, (0, 0)),
        (None, (0, 0)),
        ("many", (0, 0)),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.5}, (12, 0)),
        ({"prompt_tokens": "12", "input_tokens": 4, "completion_tokens": [3]}, (4, 0)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (0, 0)),
        ({"prompt_tokens": 10**12, "completion_tokens": 1e300}, (0, 0)),
    ],
)
def test_usage_is_understood_in_any_endpoints_words(usage: object, tokens: tuple[int, int]) -> None:
    found = usage_of({"usage": usage})
    assert found == tokens
    assert [type(count) for count in found] == [int, int]


def test_a_body_without_usage_used_nothing_that_we_know_of() -> None:
    assert usage_of({}) == (0, 0)
