"""In which order a shard's requests are asked."""

from __future__ import annotations

from typing import Any

import pytest

from synthgen.beginnings import by_beginning
from synthgen.request import CHAT, RESPONSES, Request


def request(line: int, body: dict[str, Any], url: str = CHAT) -> Request:
    return Request(line, str(line), url, body, b"", deterministic=False)


def chat(line: int, system: Any, *, role: str = "system", model: str = "m") -> Request:
    messages = [{"role": role, "content": system}, {"role": "user", "content": f"question {line}"}]
    return request(line, {"model": model, "messages": messages})


def order(*requests: Request) -> list[int]:
    return [each.line for each in by_beginning(requests)]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_those_with_one_system_prompt_come_together_and_the_first_seen_first(role: str) -> None:
    assert order(*(chat(line, f"prompt {line % 2}", role=role) for line in range(6))) == [0, 2, 4, 1, 3, 5]


def test_system_prompts_of_several_parts_are_compared_by_their_content() -> None:
    parts = [[{"type": "text", "text": text}] for text in "ab"]
    assert order(*(chat(line, parts[line % 2]) for line in range(4))) == [0, 2, 1, 3]


def test_instructions_are_a_system_prompt() -> None:
    asked = [request(line, {"input": "x", "instructions": "ab"[line % 2]}, RESPONSES) for line in range(4)]
    assert order(*asked) == [0, 2, 1, 3]


def test_one_system_prompt_for_two_models_is_two_beginnings() -> None:
    assert order(*(chat(line, "same", model=f"m{line % 2}") for line in range(4))) == [0, 2, 1, 3]


@pytest.mark.parametrize(
    "body",
    [{"prompt": "x"}, {"messages": []}, {"messages": "x"}, {"messages": ["x"]}, {"messages": [{"role": "user"}]}],
)
def test_without_a_system_prompt_the_input_s_order_stays(body: dict[str, Any]) -> None:
    assert order(*(request(line, body) for line in range(3))) == [0, 1, 2]
