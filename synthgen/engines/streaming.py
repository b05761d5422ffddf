"""A streamed reply put together again: the body that the same request gets unstreamed, and when its tokens came.

Pure: bytes and the times at which they came go in. What a broken stream means to the lane is the client's business.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from synthgen.request import CHAT, COMPLETIONS, Request

_WHOLE: Final = {"chat.completion.chunk": "chat.completion"}
"""What a chunk calls itself, and the whole."""
_GENERATED: Final = ("content", "tool_calls", "reasoning_content", "reasoning", "refusal", "function_call")
"""Fields of a chat's delta in which a model's tokens arrive."""
_SAID_ONCE: Final = frozenset({"role", "id", "type", "name", "finish_reason", "stop_reason"})
"""Strings that are told whole, by some servers with every chunk; all others come in pieces."""
_NEVER_STREAMED: Final = ("prompt_logprobs", "best_of", "use_beam_search")
"""Fields of a body that servers refuse, or ignore, when they stream."""


class BrokenStream(Exception):
    """The stream cannot be read, or ends before the answer does; the text completes 'the body is …'."""


class StreamedError(Exception):
    """The server gave up midway; ``error`` is what it says, ``chunk`` the JSON that says it."""

    def __init__(self, error: object, chunk: bytes) -> None:
        super().__init__(error)
        self.error = error
        self.chunk = chunk


class StreamedReply:
    """One reply that comes in pieces. Times are seconds of any one clock; ``sent`` is when the request went out."""

    def __init__(self, url: str, *, sent: float) -> None:
        self._chat = url == CHAT
        self._sent = sent
        self._rest = b""
        self._ended = False
        self._reply: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._first: dict[int, float] = {}
        """By choice: when its first token came."""
        self._last: dict[int, float] = {}

    def feed(self, data: bytes, now: float) -> None:
        """Bytes as they came at ``now``. Raises BrokenStream or StreamedError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)

    def body(self) -> dict[str, Any]:
        """The whole reply, when all has come. Raises BrokenStream when something is missing."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not self._ended or not choices or any(choice.get("finish_reason") is None for choice in choices):
            raise BrokenStream("cut short")
        for choice in choices:
            _without_indexes(choice)
        return {**self._reply, "choices": choices}

    def ttft_ms(self) -> float | None:
        """Milliseconds from sending to the first token of any choice, None before it."""
        return round((min(self._first.values()) - self._sent) * 1000, 1) if self._first else None

    def itl_ms(self, completion_tokens: int) -> float | None:
        """Mean milliseconds from one token of a choice to its next; the count of all tokens is the engine's."""
        gaps = completion_tokens - len(self._first)
        if gaps <= 0:
            return None
        return round(sum(self._last[index] - first for index, first in self._first.items()) * 1000 / gaps, 2)

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._ended = True
            return
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise BrokenStream("no stream of JSON") from None
        if not isinstance(chunk, dict):
            raise BrokenStream("no stream of JSON objects")
        if error := chunk.get("error"):
            raise StreamedError(error, data)
        try:
            for choice in chunk.pop("choices", None) or ():
                self._add(choice, now)
        except (AttributeError, KeyError, TypeError):
            raise BrokenStream("a stream of something else than answers") from None
        for name, value in chunk.items():
            if value is not None or name not in self._reply:
                self._reply[name] = _WHOLE.get(value, value) if name == "object" else value

    def _add(self, choice: dict[str, Any], now: float) -> None:
        index = choice["index"]
        delta = choice.pop("delta", None) or {}
        if not self._chat or choice.get("finish_reason") or _brings_tokens(delta):
            self._first.setdefault(index, now)
            self._last[index] = now
        if index not in self._choices:
            self._choices[index] = {"index": index}
            if self._chat:
                self._choices[index]["message"] = {"role": "assistant", "content": None}
        whole = self._choices[index]
        _merge(whole, choice)
        if self._chat:
            _merge(whole["message"], delta)


def can_stream(request: Request) -> bool:
    """Whether its reply can come in pieces and be put together again."""
    return request.url in (CHAT, COMPLETIONS) and not any(request.body.get(name) for name in _NEVER_STREAMED)


def as_streaming(body: dict[str, Any]) -> dict[str, Any]:
    """The body that asks for the same as a stream, with the engine's own token counts at its end."""
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _brings_tokens(delta: dict[str, Any]) -> bool:
    """Not the chunk that only opens a message; but a token may well have no text of its own: half a character."""
    return any(delta.get(name) for name in _GENERATED) or bool(delta and "role" not in delta)


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        present = whole.get(name)
        if present is None and _is_indexed(value):
            whole[name] = []
            _merge_indexed(whole[name], value)
        elif present is None:
            whole[name] = value
        elif isinstance(value, str) and isinstance(present, str):
            whole[name] = (value or present) if name in _SAID_ONCE else present + value
        elif isinstance(value, list) and isinstance(present, list):
            _merge_list(present, value)
        elif isinstance(value, dict) and isinstance(present, dict):
            _merge(present, value)
        elif value is not None:
            whole[name] = value


def _merge_list(present: list[Any], piece: list[Any]) -> None:
    if _is_indexed(piece):
        _merge_indexed(present, piece)
    else:
        present.extend(piece)


def _merge_indexed(present: list[Any], piece: list[dict[str, Any]]) -> None:
    """Tool calls: pieces of several, each with the place of what it belongs to."""
    for part in piece:
        found = next((item for item in present if item["index"] == part["index"]), None)
        if found is None:
            found = {"index": part["index"]}
            present.append(found)
        _merge(found, part)


def _is_indexed(value: object) -> bool:
    """Whether it is a list of parts that say where they belong."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "index" in item for item in value)


def _without_indexes(choice: dict[str, Any]) -> None:
    """An unstreamed reply has its tool calls in order and without their places, and null for an empty content."""
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    if calls:
        message["content"] = message["content"] or None
    if _is_indexed(calls):  # some servers send each call whole, and say no place
        calls.sort(key=lambda call: call["index"])
        for call in calls:
            del call["index"]
