"""The order in which a shard's requests are asked: those that begin alike one after the other, for prefix caches.

An engine that keeps the keys and values of a common beginning (vLLM, and providers that charge less for it) keeps as
many as it has room for; asked in turn, many long system prompts would push each other out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import orjson

from synthgen.request import Request

_SYSTEM: Final = ("system", "developer")


def by_beginning(requests: Sequence[Request]) -> list[Request]:
    """The same requests, those of one model and system prompt together; the groups, and each within, in input order."""
    groups: dict[Hashable, list[Request]] = {}
    for request in requests:
        groups.setdefault(_beginning(request), []).append(request)
    return [request for group in groups.values() for request in group]


def _beginning(request: Request) -> Hashable:
    """What a request shares with others: its model and system prompt, whatever shape that has; None for none."""
    body = request.body
    system = body.get("instructions")  # of /v1/responses
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[0], dict) and messages[0].get("role") in _SYSTEM:
        system = messages[0].get("content")
    return str(body.get("model")), system if isinstance(system, str | None) else orjson.dumps(system)
