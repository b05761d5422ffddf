"""One input line: which forms run, what is wrong with the others, and which lines ask the same."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from synthgen.errors import BadInput
from synthgen.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    INPUT_FIELD,
    RESPONSES,
    LineRules,
    Rejected,
    Request,
    base_key,
    cache_key,
    cache_scope,
    parameters_of,
    parse_line,
    template,
)

CONTENT: dict[str, Any] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": ["hi", "ho"]},
    RESPONSES: {"input": "hi"},
}


def batch_line(endpoint: str = CHAT, **changes: Any) -> dict[str, Any]:
    """A good line with fields changed, or taken out where the change is ``...``."""
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "m", **CONTENT[endpoint]}}
    return {name: value for name, value in (line | changes).items() if value is not ...}


def parsed(row: object, rules: LineRules | None = None, *, line: int = 1) -> Request:
    request = parse_line(row if isinstance(row, bytes) else orjson.dumps(row), line, rules or LineRules())
    assert isinstance(request, Request), request
    return request


def refused(row: object, rules: LineRules | None = None, *, line: int = 1) -> Rejected:
    rejected = parse_line(row if isinstance(row, bytes) else orjson.dumps(row), line, rules or LineRules())
    assert isinstance(rejected, Rejected), rejected
    assert rejected.line == line
    return rejected


# ---- what runs


@pytest.mark.parametrize("url", INPUT_FIELD)
def test_a_batch_line_of_each_endpoint_runs_as_it_stands(url: str) -> None:
    request = parsed(batch_line(url, custom_id="row-7"), line=7)
    assert (request.line, request.custom_id, request.url) == (7, "row-7", url)
    assert request.body == {"model": "m", **CONTENT[url]}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (None, {"messages": [{"role": "user", "content": "hi"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        (COMPLETIONS, {"prompt": "hi"}),
        (EMBEDDINGS, {"input": "hi"}),
        (RESPONSES, {"input": "hi"}),
    ],
)
def test_a_prompt_becomes_what_the_endpoint_wants(endpoint: str | None, body: dict[str, Any]) -> None:
    request = parsed({"prompt": "hi"}, LineRules(endpoint=endpoint))
    assert request.url == (endpoint or CHAT)
    assert request.body == body


@pytest.mark.parametrize("endpoint", INPUT_FIELD)
def test_a_simple_line_may_hold_the_endpoints_own_field_and_any_other(endpoint: str) -> None:
    request = parsed({**CONTENT[endpoint], "top_p": 0.5}, LineRules(endpoint=endpoint))
    assert request.body == {**CONTENT[endpoint], "top_p": 0.5}


def test_a_simple_line_may_name_itself_and_is_named_by_its_line_otherwise() -> None:
    assert parsed({"prompt": "hi", "custom_id": "mine"}).custom_id == "mine"
    assert "custom_id" not in parsed({"prompt": "hi", "custom_id": "mine"}).body
    assert parsed({"prompt": "hi"}, line=12).custom_id == "line-12"
    assert parsed({"prompt": "hi", "custom_id": None}, line=3).custom_id == "line-3"


def test_a_prompt_of_tokens_is_kept_for_completions() -> None:
    assert parsed({"prompt": [1, 2, 3]}, LineRules(endpoint=COMPLETIONS)).body == {"prompt": [1, 2, 3]}


def test_defaults_complete_a_line_and_never_replace_what_it_says() -> None:
    rules = LineRules(model="m", defaults={"temperature": 0.7, "max_tokens": 9})
    assert parsed({"prompt": "hi", "temperature": 0.1}, rules).body == {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.1,
        "max_tokens": 9,
        "model": "m",
    }
    own = parsed(batch_line(), rules).body
    assert (own["model"], own["temperature"]) == ("m", 0.7)
    assert parsed(batch_line(body={**CONTENT[CHAT], "model": "own"}), rules).body["model"] == "own"


def test_a_system_prompt_goes_first_unless_the_line_has_one() -> None:
    rules = LineRules(system="Be brief.")
    assert parsed({"prompt": "hi"}, rules).body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    for role in ("system", "developer"):
        own = [{"role": role, "content": "Be long."}, {"role": "user", "content": "hi"}]
        assert parsed({"messages": own}, rules).body["messages"] == own


def test_a_system_prompt_becomes_the_instructions_of_a_response_unless_the_line_has_some() -> None:
    rules = LineRules(system="Be brief.", endpoint=RESPONSES)
    plain = parsed({"prompt": "hi"}, rules)
    assert plain.body == {"input": "hi", "instructions": "Be brief."}
    assert plain.base_key != parsed({"prompt": "hi"}, LineRules(endpoint=RESPONSES)).base_key
    assert parsed({"prompt": "hi", "instructions": "Be long."}, rules).body["instructions"] == "Be long."
    own = [{"role": "developer", "content": "Be long."}, {"role": "user", "content": "hi"}]
    assert parsed({"input": own}, rules).body == {"input": own}


def test_a_raw_row_becomes_a_prompt_by_its_template_and_nothing_else_of_it_is_sent() -> None:
    rules = LineRules(render=template("Solve: {question}"), model="m")
    request = parsed({"question": "1+1", "answer": "2", "custom_id": "q1"}, rules)
    assert request.custom_id == "q1"
    assert request.body == {"messages": [{"role": "user", "content": "Solve: 1+1"}], "model": "m"}


def test_a_template_serves_every_endpoint_and_may_name_the_custom_id() -> None:
    for endpoint in (COMPLETIONS, EMBEDDINGS, RESPONSES):
        rules = LineRules(render=template("{custom_id}: {q}"), endpoint=endpoint)
        assert parsed({"q": "x", "custom_id": "c"}, rules).body == {INPUT_FIELD[endpoint]: "c: x"}


def test_a_row_without_a_field_that_the_template_names_is_told_which() -> None:
    rejected = refused({"answer": "2"}, LineRules(render=template("{question}")))
    assert rejected.code == "invalid_request"
    assert "'question'" in rejected.message


# ---- what surrounds a line


@pytest.mark.parametrize("raw", [b"", b" ", b"\t \r", b"\xef\xbb\xbf", b"\xef\xbb\xbf  "])
def test_a_blank_line_is_no_request_and_no_mistake(raw: bytes) -> None:
    assert parse_line(raw, 1, LineRules()) is None


@pytest.mark.parametrize("line", [1, 5])
def test_a_byte_order_mark_is_passed_over_also_where_a_second_file_begins(line: int) -> None:
    assert parsed(b'\xef\xbb\xbf{"prompt":"hi"}', line=line).body["messages"][0]["content"] == "hi"


def test_white_space_around_a_line_does_not_matter() -> None:
    assert parsed(b' \t{"prompt":"hi"} \r').base_key == parsed(b'{"prompt":"hi"}').base_key


# ---- what is wrong


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b'{"prompt":', "invalid_json_line", "not valid JSON"),
        (b"hello", "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"a"}{"prompt":"b"}', "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"hi","top_p":NaN}', "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"hi","top_p":Infinity}', "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"hi","top_p":1e999}', "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"\\ud800"}', "invalid_json_line", "not valid JSON"),
        (b"{'prompt':'hi'}", "invalid_json_line", "not valid JSON"),
        (b'{"prompt":"\xff"}', "invalid_json_line", "not valid UTF-8 (byte 12)"),
        (b'\xff\xfe{\x00"\x00', "invalid_json_line", "not valid UTF-8 (byte 1)"),
        (b"[1]", "invalid_request", "a list"),
        (b'"hi"', "invalid_request", "a string"),
        (b"null", "invalid_request", "null"),
        (b"true", "invalid_request", "a boolean"),
        (b"7", "invalid_request", "a number"),
        (b"{}", "invalid_request", "--prompt"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_code_and_reason(raw: bytes, code: str, says: str) -> None:
    rejected = refused(raw, line=41)
    assert rejected.code == code
    assert says in rejected.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"custom_id": ...}, "'custom_id' is missing"),
        ({"method": ...}, "'method' is missing"),
        ({"url": ...}, "'url' is missing"),
        ({"body": ...}, "'body' is missing"),
        ({"method": "GET"}, '"GET"'),
        ({"method": None}, "null"),
        ({"custom_id": ""}, "'custom_id'"),
        ({"custom_id": 7}, "'custom_id' is 7"),
        ({"custom_id": None}, "'custom_id' is null"),
        ({"url": "/v1/images/generations"}, "/v1/images/generations"),
        ({"url": 3}, "'url' is 3"),
        ({"url": ["/v1/chat/completions"]}, "'url'"),
        ({"body": "hi"}, "'body' is a string"),
        ({"body": [1]}, "'body' is a list"),
        ({"body": None}, "'body' is null"),
        ({"body": {"model": "m"}}, "no 'messages'"),
        ({"body": {"model": "m", "messages": None}}, "no 'messages'"),
        ({"body": {"model": "m", "messages": []}}, "'messages'"),
        ({"body": {"model": "m", "messages": "hi"}}, "'messages'"),
        ({"body": {"model": "m", "messages": ["hi"]}}, "'messages'"),
        ({"body": {"model": "m", "messages": [{"content": "hi"}]}}, "'role'"),
        ({"body": {"model": "", **CONTENT[CHAT]}}, "'model'"),
        ({"body": {"model": 5, **CONTENT[CHAT]}}, "'model' is 5"),
        ({"body": {"model": "m", "stream": True, **CONTENT[CHAT]}}, "'stream'"),
        ({"url": EMBEDDINGS, "body": {"model": "m", "input": ""}}, "'input'"),
        ({"url": COMPLETIONS, "body": {"model": "m", "prompt": {"a": 1}}}, "'prompt'"),
        ({"url": RESPONSES, "body": {"model": "m"}}, "no 'input'"),
    ],
)
def test_a_batch_line_with_a_defect_is_an_invalid_request_that_names_the_field(
    changes: dict[str, Any], says: str
) -> None:
    rejected = refused(batch_line(**changes), line=3)
    assert rejected.code == "invalid_request"
    assert says in rejected.message


def test_a_simple_line_with_a_wrong_prompt_or_id_is_refused() -> None:
    assert "'prompt' is a list" in refused({"prompt": ["hi"]}).message
    assert "'custom_id' is 5" in refused({"prompt": "hi", "custom_id": 5}).message
    assert "'stream'" in refused({"prompt": "hi"}, LineRules(defaults={"stream": True})).message


def test_stream_false_is_fine() -> None:
    assert parsed({"prompt": "hi", "stream": False}).body["stream"] is False


def test_another_url_than_the_batchs_is_a_mismatch() -> None:
    rejected = refused(batch_line(COMPLETIONS), LineRules(endpoint=CHAT))
    assert rejected.code == "url_mismatch"
    assert COMPLETIONS in rejected.message
    assert CHAT in rejected.message


def test_a_line_over_the_size_limit_is_too_long_and_one_at_the_limit_is_not() -> None:
    raw = orjson.dumps({"prompt": "x" * 100})
    assert refused(raw + b" ", LineRules(max_bytes=len(raw))).code == "line_too_long"
    assert parsed(raw, LineRules(max_bytes=len(raw))).custom_id == "line-1"


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def test_nesting_is_accepted_as_deep_as_it_can_be_sent_and_refused_beyond() -> None:
    assert parsed(b'{"prompt":"hi","x":%b}' % nested(250)).custom_id == "line-1"
    for levels in (300, 5_000):
        assert refused(b'{"prompt":"hi","x":%b}' % nested(levels)).code in ("invalid_request", "invalid_json_line")
    deep_method = b'{"custom_id":"a","url":"/v1/completions","body":{},"method":%b}' % nested(300)
    assert refused(deep_method).code == "invalid_request"
    assert refused(b'{"q":%b}' % nested(300), LineRules(render=template("{q}"))).code == "invalid_request"


def test_numbers_too_large_for_an_integer_still_make_a_request() -> None:
    assert parsed(b'{"prompt":"hi","seed":18446744073709551615}').body["seed"] == 2**64 - 1
    assert parsed(b'{"prompt":"hi","seed":123456789012345678901234567890}').body["seed"] == pytest.approx(1.2345679e29)


def test_of_duplicate_keys_the_last_one_counts() -> None:
    assert parsed(b'{"prompt":"a","prompt":"b"}').body["messages"][0]["content"] == "b"


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refused(batch_line(custom_id=["x" * 1000])).message) < 200


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_parsing_raise(raw: bytes) -> None:
    assert parse_line(raw, 1, LineRules()) is None or raw.strip()


# ---- templates


def test_a_template_takes_strings_as_they_are_and_other_values_as_json() -> None:
    render = template("{a}/{b}/{c}/{{{d}}}")
    assert render({"a": "x", "b": 1.5, "c": {"z": 1, "y": [None]}, "d": True}) == 'x/1.5/{"z":1,"y":[null]}/{true}'


@pytest.mark.parametrize("text", ["no field", "", "{", "}", "a {} b", "{a", "{a} {}", "{{a}}", "{a:>5}", "{a!r}"])
def test_a_text_that_is_no_template_of_fields_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match="template"):
        template(text)


@given(st.text(), st.text())
def test_a_value_that_looks_like_a_template_is_not_rendered_again(value: str, literal: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert template(escaped + "{v}")({"v": value}) == literal + value


# ---- what asks the same

numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=10)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(st.text(max_size=6), values, max_size=6)
IGNORED = ("stream", "user", "metadata")


def shuffled(value: Any, draw: Any) -> Any:
    """The same value with the keys of every object in another order and numbers written in the other way."""
    if isinstance(value, dict):
        names = draw(st.permutations(list(value)))
        return {name: shuffled(value[name], draw) for name in names}
    if isinstance(value, list):
        return [shuffled(item, draw) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


@given(bodies, st.data())
def test_order_of_keys_and_way_of_writing_numbers_do_not_change_the_key(body: dict[str, Any], data: Any) -> None:
    assert base_key(CHAT, shuffled(body, data.draw)) == base_key(CHAT, body)


@given(bodies, st.dictionaries(st.sampled_from(IGNORED), values))
def test_fields_that_cannot_change_the_answer_do_not_change_the_key(
    body: dict[str, Any], ignored: dict[str, Any]
) -> None:
    plain = {name: value for name, value in body.items() if name not in IGNORED}
    assert base_key(CHAT, plain | ignored) == base_key(CHAT, plain)


def canonical(value: Any) -> Any:
    """A slow reference for what must stay apart."""
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(canonical(item) for item in value))
    return (type(value).__name__ if isinstance(value, (bool, str, type(None))) else "number", value)


@given(bodies, bodies)
def test_bodies_that_differ_in_anything_else_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    one, other = ({n: v for n, v in body.items() if n not in IGNORED} for body in (one, other))
    assume(canonical(one) != canonical(other))
    assert base_key(CHAT, one) != base_key(CHAT, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": True}),
        ({"n": 0}, {"n": False}),
        ({"n": 1}, {"n": "1"}),
        ({"n": 1}, {"n": [1]}),
        ({"n": None}, {}),
        ({"n": [1, 2]}, {"n": [2, 1]}),
        ({"n": 0.1}, {"n": 0.10000000000000002}),
        ({"n": "a"}, {"n": "a "}),
        ({"n": {"user": 1}}, {"n": {"user": 2}}),
    ],
)
def test_small_differences_are_differences(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert base_key(CHAT, one) != base_key(CHAT, other)


def test_the_endpoint_is_part_of_the_key() -> None:
    assert len({base_key(url, {"input": "hi"}) for url in INPUT_FIELD}) == len(INPUT_FIELD)


def test_white_space_inside_a_line_does_not_change_the_key() -> None:
    tight, loose = b'{"prompt":"hi","n":1.0}', b'{ "n" : 1 ,\t"prompt" : "hi" }'
    assert parsed(tight).base_key == parsed(loose).base_key


def test_equal_questions_in_different_forms_have_one_key() -> None:
    simple = parsed({"prompt": "hi"}, LineRules(model="m"))
    assert simple.base_key == parsed(batch_line(custom_id="other")).base_key


def test_a_key_depends_on_who_is_asked_for_whom_and_on_the_occurrence() -> None:
    base = parsed({"prompt": "hi"}).base_key
    scopes = [
        cache_scope(namespace="a", provider="p"),
        cache_scope(namespace="b", provider="p"),
        cache_scope(namespace="a", provider="q"),
        cache_scope(namespace="a", provider="p", revision="r"),
        cache_scope(namespace="ap", provider=""),
        cache_scope(namespace="", provider="ap"),
    ]
    keys = {cache_key(base, scope=scope, occurrence=k) for scope in scopes for k in (1, 2, 3)}
    assert len(keys) == len(scopes) * 3
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize(
    ("body", "deterministic"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.1}, False),
        ({"seed": 1}, True),
        ({"seed": 0}, True),
        ({"seed": None}, False),
    ],
)
def test_temperature_zero_or_a_seed_makes_a_request_deterministic(body: dict[str, Any], deterministic: bool) -> None:
    assert parsed({"prompt": "hi", **body}).deterministic is deterministic


def test_embeddings_are_always_deterministic() -> None:
    assert parsed({"input": "hi"}, LineRules(endpoint=EMBEDDINGS)).deterministic


@pytest.mark.parametrize("url", INPUT_FIELD)
def test_parameters_are_what_a_body_says_besides_model_prompt_and_what_changes_nothing(url: str) -> None:
    wanted = {"temperature": 0.5, "tools": [{"type": "function"}], "min_p": 0.1}
    body = {"model": "m", **CONTENT[url], "user": "u", "metadata": {"a": "b"}, "stream": False, **wanted}
    request = parsed(batch_line(url, body=body))
    assert parameters_of(request.body) == wanted
    assert request.body["model"] == "m"
