"""An engine without a model: deterministic text, scriptable latency and failures, so that everything can be shown and
tested at no cost. The same request gives the same text, in every process and on every try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b, shake_128
from math import exp, sqrt
from statistics import NormalDist
from typing import Any, Final

import orjson

from synthgen.engines.base import EngineSpec, Unmanaged
from synthgen.engines.refusals import Refusal, classify
from synthgen.errors import BadInput, RetryableError
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, INPUT_FIELD, RESPONSES, Request
from synthgen.response import TIMED_OUT, Reply

_VOCABULARY: Final = (
    "answer apple bridge candle circle cloud copper corner dance desert dinner dragon early east echo ember engine "
    "family feather field finger forest garden gentle glass golden harbor honey island jacket journey kettle ladder "
    "lantern lemon letter little marble meadow mirror morning mountain needle night number ocean orange paper pencil "
    "pepper planet pocket river second shadow silver simple sister spring stone story summer table window"
)
_WORDS: Final = _VOCABULARY.split()
_MOST_WORDS: Final = 60
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_DIMENSIONS: Final = 32
_EVERY: Final = 64
"""At no latency the loop gets a turn every so many requests; more often would cost more than the answers."""

_Latency = Callable[[float], float]
"""A number in (0, 1) that belongs to the request becomes seconds."""


class MockEngine(Unmanaged):
    """``latency``, ``fail_rate``, ``fail_status`` and ``fail_ids`` are its options (``EngineSpec.options``).

    ``latency`` is seconds (``0.2``) or a distribution: ``uniform:LOW:HIGH``, ``normal:MEAN:SD``,
    ``lognormal:MEDIAN:SIGMA``. ``fail_rate`` is the share of tries that fail; ``fail_ids`` are the custom_ids, with
    commas between, that always fail; both fail as an HTTP reply with ``fail_status`` (500) would.
    """

    name = "mock"

    def __init__(self, spec: EngineSpec) -> None:
        options = _known(spec.options)
        self.provider = spec.provider or "mock"
        self.in_flight = spec.in_flight or 256
        self._spec = spec
        self._latency = _latency(options.get("latency", "0"))
        self._fail_rate = _number("fail_rate", options.get("fail_rate", "0"), highest=1.0)
        self._fail_status = _status(options.get("fail_status", "500"))
        self._fail_ids = frozenset(filter(None, options.get("fail_ids", "").split(",")))
        self._tries: dict[tuple[int, str], int] = {}
        """Only of requests that failed by rate and had no success yet."""
        self._served = 0

    async def start(self) -> None:
        """Nothing to open."""

    async def health(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to close."""

    async def generate(self, request: Request) -> Reply:
        await self._take_time(request)
        self._fail_by_rule(request)
        body, prompt_tokens, completion_tokens = _ANSWERS[request.url](request, self._model(request))
        return Reply(
            orjson.dumps(body),
            prompt_tokens,
            completion_tokens,
            self._spec.cost(prompt_tokens, completion_tokens),
            request_id=body.get("id"),
        )

    def _model(self, request: Request) -> str:
        return str(request.body.get("model") or self._spec.model or "mock")

    async def _take_time(self, request: Request) -> None:
        if self._latency is None:
            self._served += 1
            if self._served % _EVERY == 0:
                await asyncio.sleep(0)
            return
        seconds = self._latency(_share(request, b"latency"))
        await asyncio.sleep(min(seconds, self._spec.timeout))
        if seconds > self._spec.timeout:
            raise RetryableError(f"No reply within {self._spec.timeout:g} s.", code=TIMED_OUT)

    def _fail_by_rule(self, request: Request) -> None:
        if request.custom_id in self._fail_ids:
            raise self._refusal(request)
        if not self._fail_rate:
            return
        who = (request.line, request.custom_id)
        number = self._tries.get(who, 0) + 1
        if _share(request, b"try %d" % number) < self._fail_rate:
            self._tries[who] = number
            raise self._refusal(request)
        self._tries.pop(who, None)

    def _refusal(self, request: Request) -> Exception:
        status = self._fail_status
        body = {"error": {"message": f"The mock fails here with {status}, as it was told to.", "type": "mock_failure"}}
        return classify(Refusal(status, orjson.dumps(body), "mock://", self._model(request), {}, time.time()))


def _chat(request: Request, model: str) -> tuple[dict[str, Any], int, int]:
    answers = [_text(request, index) for index in range(_choices(request))]
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        for index, (text, _, reason) in enumerate(answers)
    ]
    return _completion(request, model, kind="chat.completion", choices=choices, tokens=sum(a[1] for a in answers))


def _text_completion(request: Request, model: str) -> tuple[dict[str, Any], int, int]:
    prompts = request.body["prompt"]
    many = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    answers = [_text(request, index) for index in range(many * _choices(request))]
    choices = [
        {"index": index, "text": text, "finish_reason": reason} for index, (text, _, reason) in enumerate(answers)
    ]
    return _completion(request, model, kind="text_completion", choices=choices, tokens=sum(a[1] for a in answers))


def _completion(
    request: Request, model: str, *, kind: str, choices: list[dict[str, Any]], tokens: int
) -> tuple[dict[str, Any], int, int]:
    prompt_tokens = _prompt_tokens(request)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    body = {"id": _id(request), "object": kind, "created": 0, "model": model, "choices": choices, "usage": usage}
    return body, prompt_tokens, tokens


def _responses(request: Request, model: str) -> tuple[dict[str, Any], int, int]:
    text, tokens, reason = _text(request, 0)
    prompt_tokens = _prompt_tokens(request)
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": content}
    usage = {"input_tokens": prompt_tokens, "output_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    body = {
        "id": _id(request),
        "object": "response",
        "created_at": 0,
        "status": "completed" if reason == "stop" else "incomplete",
        "error": None,
        "model": model,
        "output": [message],
        "usage": usage,
    }
    return body, prompt_tokens, tokens


def _embeddings(request: Request, model: str) -> tuple[dict[str, Any], int, int]:
    given = request.body["input"]
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    size = request.body.get("dimensions") or _DIMENSIONS
    data = [
        {"object": "embedding", "index": index, "embedding": _unit_vector(orjson.dumps(item), size)}
        for index, item in enumerate(inputs)
    ]
    tokens = _prompt_tokens(request)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}, tokens, 0


_ANSWERS: Final[Mapping[str, Callable[[Request, str], tuple[dict[str, Any], int, int]]]] = {
    CHAT: _chat,
    COMPLETIONS: _text_completion,
    EMBEDDINGS: _embeddings,
    RESPONSES: _responses,
}
"""Each gives the body, the prompt tokens and the completion tokens."""


def _text(request: Request, index: int) -> tuple[str, int, str]:
    """The words, how many, and why they end."""
    noise = shake_128(request.base_key + index.to_bytes(4, "big")).digest(_MOST_WORDS + 1)
    wanted = 8 + noise[0] % (_MOST_WORDS - 8)
    limit = next((request.body[name] for name in _LIMITS if request.body.get(name)), wanted)
    count = min(wanted, limit) if isinstance(limit, int) else wanted
    text = " ".join([_WORDS[byte & 63] for byte in noise[1 : count + 1]])
    return text, count, "stop" if count == wanted else "length"


def _unit_vector(content: bytes, size: int) -> list[float]:
    noise = shake_128(content).digest(2 * size)
    values = [int.from_bytes(noise[i : i + 2], "big") - 32767.5 for i in range(0, 2 * size, 2)]
    length = sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def _choices(request: Request) -> int:
    wanted = request.body.get("n")
    return wanted if isinstance(wanted, int) and wanted > 0 else 1


def _prompt_tokens(request: Request) -> int:
    """A token is about four bytes."""
    return 1 + len(orjson.dumps(request.body[INPUT_FIELD[request.url]])) // 4


def _id(request: Request) -> str:
    return f"mock-{request.base_key[:12].hex()}"


def _share(request: Request, purpose: bytes) -> float:
    """A number in (0, 1) that belongs to the request and the purpose."""
    noise = blake2b(request.base_key + purpose, digest_size=8).digest()
    return (int.from_bytes(noise, "big") + 1) / (2**64 + 2)


def _known(options: Mapping[str, str]) -> Mapping[str, str]:
    names = ("latency", "fail_rate", "fail_status", "fail_ids")
    for name in options:
        if name not in names:
            raise BadInput(f"The mock engine has no option {name!r}: use {', '.join(names)}.")
    return options


def _latency(text: str) -> _Latency | None:
    """None stands for no latency at all."""
    kind, *rest = text.split(":") if ":" in text else ("fixed", text)
    if kind not in _SHAPES or len(rest) != _SHAPES[kind][0]:
        raise BadInput(
            f"Mock option latency={text} is no latency: use seconds, uniform:LOW:HIGH, normal:MEAN:SD "
            "or lognormal:MEDIAN:SIGMA."
        )
    numbers = [_number("latency", part) for part in rest]
    return _SHAPES[kind][1](*numbers) if any(numbers) else None


def _fixed(seconds: float) -> _Latency:
    return lambda _: seconds


def _uniform(low: float, high: float) -> _Latency:
    return lambda share: low + share * (high - low)


def _normal(mean: float, deviation: float) -> _Latency:
    if not deviation:
        return _fixed(mean)
    shape = NormalDist(mean, deviation)
    return lambda share: max(0.0, shape.inv_cdf(share))


def _lognormal(median: float, sigma: float) -> _Latency:
    shape = NormalDist()
    return lambda share: median * exp(sigma * shape.inv_cdf(share))


_SHAPES: Final[Mapping[str, tuple[int, Callable[..., _Latency]]]] = {
    "fixed": (1, _fixed),
    "uniform": (2, _uniform),
    "normal": (2, _normal),
    "lognormal": (2, _lognormal),
}
"""Each with its count of numbers."""


def _number(name: str, text: str, *, highest: float = 1e6) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= highest:
        raise BadInput(f"Mock option {name}={text} must be a number from 0 to {highest:g}.")
    return value


def _status(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 400 <= int(text) <= 599):
        raise BadInput(f"Mock option fail_status={text} must be an HTTP status from 400 to 599.")
    return int(text)
