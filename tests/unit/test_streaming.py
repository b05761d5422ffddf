"""Replies that come in pieces: what they are together, and when their tokens came."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from synthgen.engines.streaming import BrokenStream, StreamedError, StreamedReply, as_streaming, can_stream
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Request
from tests.stub_llm import chunks_of, reply_to

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
COMMON = {"id": "c-1", "created": 7, "model": "small", "system_fingerprint": "f1"}


def sse(*events: dict[str, Any], done: bool = True) -> bytes:
    lines = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    return lines + (b"data: [DONE]\n\n" if done else b"")


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**COMMON, "object": "chat.completion.chunk", "choices": list(choices), **more}


def piece(index: int = 0, end: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": end}


def whole(*events: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    stream = StreamedReply(url, sent=0.0)
    stream.feed(sse(*events), 1.0)
    return stream.body()


def answer(**message: Any) -> dict[str, Any]:
    return {"role": "assistant", **message}


def test_words_of_a_chat_become_one_message_with_the_usage_of_the_last_chunk() -> None:
    body = whole(
        chunk(piece(role="assistant", content="")),
        chunk(piece(content="Hel"), usage=None),
        chunk(piece(content="lo")),
        chunk(piece(end="stop")),
        chunk(usage=USAGE),
    )
    choice = {"index": 0, "message": answer(content="Hello"), "logprobs": None, "finish_reason": "stop"}
    assert body == {**COMMON, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def test_several_choices_come_mixed_and_are_told_apart() -> None:
    body = whole(
        chunk(piece(1, content="b")),
        chunk(piece(0, content="a"), piece(1, content="B")),
        chunk(piece(0, content="A", end="length")),
        chunk(piece(1, end="stop")),
    )
    assert [choice["message"]["content"] for choice in body["choices"]] == ["aA", "bB"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]


def call(index: int, **fields: Any) -> dict[str, Any]:
    return {"index": index, **fields}


def test_tool_calls_come_in_pieces_and_lose_their_places() -> None:
    weather = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    time = {"id": "t2", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    body = whole(
        chunk(piece(role="assistant", content="", tool_calls=[call(0, **weather)])),
        chunk(piece(tool_calls=[call(0, function={"arguments": '{"city":'})])),
        chunk(piece(tool_calls=[call(0, function={"name": "", "arguments": '"Rome"}'}), call(1, **time)])),
        chunk(piece(end="tool_calls")),
    )
    weather["function"] = {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert body["choices"][0]["message"] == answer(content=None, tool_calls=[weather, time])


def test_tool_calls_that_come_whole_and_without_places_are_kept_in_their_order() -> None:
    weather, time = ({"id": name, "type": "function", "function": {"name": name}} for name in ("weather", "time"))
    body = whole(
        chunk(piece(role="assistant", content="")),
        chunk(piece(tool_calls=[weather])),
        chunk(piece(tool_calls=[time], end="tool_calls")),
    )
    assert body["choices"][0]["message"] == answer(content=None, tool_calls=[weather, time])


def test_logprobs_are_strung_together() -> None:
    def said(token: str) -> dict[str, Any]:
        return {"token": token, "logprob": -0.5, "bytes": [1], "top_logprobs": []}

    body = whole(
        chunk(piece(role="assistant", content="")),
        chunk({**piece(content="a"), "logprobs": {"content": [said("a")], "refusal": None}}),
        chunk({**piece(content="b", end="stop"), "logprobs": {"content": [said("b")], "refusal": None}}),
    )
    assert body["choices"][0]["logprobs"] == {"content": [said("a"), said("b")], "refusal": None}


def test_fields_of_one_server_only_are_kept() -> None:
    body = whole(
        chunk(piece(reasoning_content="Let me ")),
        chunk(piece(reasoning_content="see.")),
        chunk({**piece(content="4", end="stop"), "stop_reason": 128001, "token_ids": [5]}, service_tier="flex"),
    )
    assert body["choices"][0]["message"] == answer(content="4", reasoning_content="Let me see.")
    assert (body["choices"][0]["stop_reason"], body["choices"][0]["token_ids"]) == (128001, [5])
    assert body["service_tier"] == "flex"


def test_completions_come_as_text_with_lists_of_logprobs() -> None:
    def part(text: str, end: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}], "text_offset": [0]}
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": end}
        return {**COMMON, "object": "text_completion", "choices": [choice]}

    body = whole(part("a"), part("b", "stop"), url=COMPLETIONS)
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "ab"
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"a": -1.0}, {"b": -1.0}],
        "text_offset": [0, 0],
    }


@pytest.mark.parametrize(("url", "body"), [(CHAT, {"messages": [{"content": "Hi"}]}), (COMPLETIONS, {"prompt": "Hi"})])
def test_what_a_server_streams_is_what_it_gives_unstreamed(url: str, body: dict[str, Any]) -> None:
    reply = reply_to(url, {"model": "small", **body}, "Hi")
    assert whole(*chunks_of(reply), url=url) == reply


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_bytes_may_be_cut_anywhere_and_comments_are_passed_over(size: int) -> None:
    raw = b": ping\r\n\r\n" + sse(chunk(piece(content="ü")), chunk(piece(content="!", end="stop"))).replace(
        b"\n", b"\r\n"
    )
    stream = StreamedReply(CHAT, sent=0.0)
    for start in range(0, len(raw), size):
        stream.feed(raw[start : start + size], 1.0)
    assert stream.body()["choices"][0]["message"]["content"] == "ü!"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        sse(),
        sse(chunk(piece(content="a"))),
        sse(chunk(piece(content="a")), chunk(piece(end="stop")), done=False),
        sse(chunk(piece(0, end="stop"), piece(1, content="a"))),
    ],
)
def test_a_stream_that_ends_early_is_no_answer(raw: bytes) -> None:
    stream = StreamedReply(CHAT, sent=0.0)
    stream.feed(raw, 1.0)
    with pytest.raises(BrokenStream, match="cut short"):
        stream.body()


@pytest.mark.parametrize(
    "raw",
    [
        b"data: {half\n",
        b"data: 7\n",
        b'data: {"choices": [{"delta": {}}]}\n',
        b'data: {"choices": 1}\n',
        b'data: {"choices": ["a"]}\n',
    ],
)
def test_a_stream_of_something_else_is_refused(raw: bytes) -> None:
    with pytest.raises(BrokenStream):
        StreamedReply(CHAT, sent=0.0).feed(raw, 1.0)


def test_an_error_in_the_middle_is_told_with_what_the_server_said() -> None:
    stream = StreamedReply(CHAT, sent=0.0)
    with pytest.raises(StreamedError) as caught:
        stream.feed(sse(chunk(piece(content="a")), {"error": {"message": "out of memory", "code": 500}}), 1.0)
    assert caught.value.error == {"message": "out of memory", "code": 500}
    assert orjson.loads(caught.value.chunk)["error"]["code"] == 500


def played(*events: tuple[float, dict[str, Any]], url: str = CHAT) -> StreamedReply:
    stream = StreamedReply(url, sent=10.0)
    for now, event in events:
        stream.feed(sse(event, done=False), now)
    return stream


def test_the_first_token_is_the_first_text_and_not_the_role() -> None:
    stream = played((10.1, chunk(piece(role="assistant", content=""))), (10.25, chunk(piece(content="a"))))
    assert stream.ttft_ms() == 250.0
    assert played((10.1, chunk(piece(role="assistant", content="")))).ttft_ms() is None


def test_a_token_without_text_of_its_own_counts_as_one() -> None:
    opening = (10.1, chunk(piece(role="assistant", content="")))
    stream = played(opening, (10.2, chunk(piece(content=""))), (10.3, chunk(piece(content="ü", end="stop"))))
    assert (stream.ttft_ms(), stream.itl_ms(2)) == (200.0, 100.0)
    text = {"index": 0, "text": "", "finish_reason": None}
    assert played((10.4, {**COMMON, "choices": [text]}), url=COMPLETIONS).ttft_ms() == 400.0


def test_the_time_between_tokens_is_by_the_engines_count_whatever_the_chunks_hold() -> None:
    stream = played(
        (10.2, chunk(piece(content="a"))), (10.5, chunk(piece(content="bcd"))), (10.6, chunk(piece(end="stop")))
    )
    assert stream.itl_ms(5) == 100.0
    assert stream.itl_ms(1) is None


def test_choices_that_grow_side_by_side_are_timed_each_by_itself() -> None:
    stream = played(
        (10.1, chunk(piece(0, content="a"), piece(1, content="b"))),
        (10.3, chunk(piece(0, content="a", end="stop"))),
        (10.5, chunk(piece(1, content="b", end="stop"))),
    )
    assert (stream.ttft_ms(), stream.itl_ms(8)) == (100.0, 100.0)


@pytest.mark.parametrize(
    ("url", "more", "streams"),
    [
        (CHAT, {}, True),
        (COMPLETIONS, {"n": 3, "logprobs": 1}, True),
        (EMBEDDINGS, {}, False),
        (RESPONSES, {}, False),
        (CHAT, {"prompt_logprobs": 1}, False),
        (COMPLETIONS, {"best_of": 4}, False),
    ],
)
def test_what_cannot_come_in_pieces_is_asked_plainly(url: str, more: dict[str, Any], *, streams: bool) -> None:
    request = Request(1, "a", url, {"model": "small", **more}, b"", deterministic=False)
    assert can_stream(request) is streams


def test_asking_for_a_stream_leaves_the_request_as_it_was() -> None:
    body = {"model": "small", "seed": 1}
    asked = as_streaming(body)
    assert asked == {**body, "stream": True, "stream_options": {"include_usage": True}}
    assert "stream" not in body
