"""An OpenAI-compatible server that is no bottleneck: ``python -m tests.benchmarks.mock_server PORT [LATENCY_MS]``.

A raw protocol on uvloop that parses no more than it must: one process of it answers several times what any full HTTP
client asks on one core. It answers every POST with the same chat completion of about 900 bytes and counts them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import orjson
import uvloop

_TEXT = "The quick brown fox jumps over the lazy dog while seven wizards brew coffee. " * 8


def _reply(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_ANSWER = _reply(
    orjson.dumps(
        {
            "id": "chatcmpl-mock",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "mock",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _TEXT},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 120, "completion_tokens": 140, "total_tokens": 260},
        }
    )
)


class _Connection(asyncio.Protocol):
    served = 0

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while True:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                break
            end = head + 4 + _content_length(buffer[:head])
            if len(buffer) < end:
                break
            self._answer(buffer)
            buffer = buffer[end:]
        self._buffer = buffer

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /served"):
            self._transport.write(_reply(orjson.dumps(_Connection.served)))
        elif not request.startswith(b"POST"):
            self._transport.write(_reply(b'{"object":"list","data":[]}'))
        else:
            _Connection.served += 1
            if self._latency:
                self._loop.call_later(self._latency, self._transport.write, _ANSWER)
            else:
                self._transport.write(_ANSWER)


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def _serve(port: int, latency: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(latency), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0))
