"""One input line: parse it, say what is wrong with it, and name its content by a key.

Runs twice for every line, at submit and in the worker, so it is part of the hot path: orjson and one hash, no schema
library for the body. The envelope's few fields are checked by hand for the same reason (measured: a third of pydantic's
time) and because each defect has OpenAI's own error code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from string import Formatter
from typing import Any, Final

import orjson

from synthgen.errors import BadInput

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
RESPONSES: Final = "/v1/responses"

INPUT_FIELD: Final[Mapping[str, str]] = {
    CHAT: "messages",
    COMPLETIONS: "prompt",
    EMBEDDINGS: "input",
    RESPONSES: "input",
}
"""The endpoints of the batch line format and the body field that each cannot do without."""

KEY_VERSION: Final = b"synthgen-1"
"""Part of every key: raised when the canonical form changes, so that old entries are never mistaken for new ones."""

_CANNOT_CHANGE_THE_ANSWER: Final = ("stream", "user", "metadata")
_NO_PARAMETERS: Final = (*set(INPUT_FIELD.values()), "instructions", "model", *_CANNOT_CHANGE_THE_ANSWER)
_INTEGRAL_FLOAT_ENDS: Final = (b".0,", b".0}", b".0]")
"""How orjson writes an integral float below 2**53; three searches for bytes cost a tenth of one regular expression."""
_SYSTEM_ROLES: Final = ("system", "developer")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Request:
    """One line that can run. ``body`` has its defaults applied; ``base_key`` names endpoint and body, 32 bytes."""

    line: int
    custom_id: str
    url: str
    body: dict[str, Any]
    base_key: bytes
    deterministic: bool
    """Asking twice gives the same answer: temperature 0, a seed, or embeddings."""


@dataclass(frozen=True, slots=True)
class LineRules:
    """How lines become requests: the part of a batch's options that parsing needs."""

    endpoint: str | None = None
    model: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    render: Callable[[Mapping[str, Any]], str] | None = None
    """Turns a raw row into a prompt; raises KeyError for a field the row lacks."""
    max_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Rejected:
    """One input line that cannot run: 1-based line number, OpenAI's error code, reason."""

    line: int
    code: str
    message: str


class _LineError(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message


def parse_line(raw: bytes, line: int, rules: LineRules) -> Request | Rejected | None:
    """The request on one line (1-based), the reason why it cannot run, or None for a blank line.

    Codes are those of OpenAI's batch validation (``invalid_json_line``, ``invalid_request``, ``url_mismatch``) plus
    ``line_too_long``. Duplicate ids are found by whoever sees all lines.
    """
    raw = raw.removeprefix(_BOM)  # of the first line of any of the files that were put together
    if not raw or raw.isspace():
        return None
    try:
        if len(raw) > rules.max_bytes:
            raise _LineError("line_too_long", f"Line is longer than {rules.max_bytes:,} bytes.")
        custom_id, url, body = _envelope(_load(raw), line, rules)
        _complete(body, url, rules)
        return Request(line, custom_id, url, body, base_key(url, body), _is_deterministic(url, body))
    except _LineError as error:
        return Rejected(line, error.code, error.message)


def check_system(rules: LineRules, url: str) -> None:
    """Raises BadInput when lines are to get a system prompt, and requests to ``url`` have no place for one."""
    if rules.system is not None and url not in (CHAT, RESPONSES):
        raise BadInput(f"--system has no place in requests to {url}: leave it out, or write it into the prompts.")


def base_key(url: str, body: Mapping[str, Any]) -> bytes:
    """What the request asks, as 32 bytes: BLAKE2b over endpoint path and canonical body.

    Canonical: sorted keys, no white space, ``1.0`` written as ``1``, without fields that cannot change the answer.
    """
    content = {name: value for name, value in body.items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    canonical = _dump(content, option=orjson.OPT_SORT_KEYS)
    if any(end in canonical for end in _INTEGRAL_FLOAT_ENDS):
        canonical = _dump(_normalise(content), option=orjson.OPT_SORT_KEYS)
    return blake2b(KEY_VERSION + url.encode() + b"\0" + canonical, digest_size=32).digest()


def parameters_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """How the answer is to be made: what the body says besides the model and the prompt itself."""
    parameters = dict(body)
    for name in _NO_PARAMETERS:  # few to take out, whatever a body holds: a third faster than looking at each field
        parameters.pop(name, None)
    return parameters


def cache_key(base: bytes, *, scope: bytes, occurrence: int = 1) -> bytes:
    """The key of one answer: who answers (``cache_scope``), the question, which sample of it; 32 bytes."""
    return blake2b(scope + base + occurrence.to_bytes(8, "big"), digest_size=32).digest()


def cache_scope(*, namespace: str, provider: str, revision: str = "") -> bytes:
    """Who answers for whom: namespace, provider and model revision, length-prefixed; 32 bytes."""
    parts = (namespace.encode(), provider.encode(), revision.encode())
    return blake2b(b"".join(len(p).to_bytes(4, "big") + p for p in parts), digest_size=32).digest()


def template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that fills ``{field}`` places of ``text`` from a row; strings as they are, other values as JSON.

    ``{{`` and ``}}`` are braces. Raises BadInput when the text is no template or names nothing.
    """
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise BadInput(
            f"The prompt template cannot be read ({error}); write {{field}} for a field and {{{{ for a brace."
        ) from error
    if any(conversion or spec for _, _, spec, conversion in pieces):
        raise BadInput("The prompt template can only name fields, as in {field}; take ':' and '!' out of the braces.")
    if not any(name for _, name, _, _ in pieces) or any(name == "" for _, name, _, _ in pieces):
        raise BadInput("The prompt template must name fields of the rows, for example --prompt 'Solve: {question}'.")
    return lambda row: "".join(
        literal + (_text(row[name]) if name is not None else "") for literal, name, _, _ in pieces
    )


def _load(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _LineError("invalid_json_line", _why_not_json(raw, error)) from None
    if not isinstance(value, dict):
        raise _LineError("invalid_request", f"Line is {_kind(value)}, not a JSON object.")
    return value


def _why_not_json(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as bad:
        return f"Line is not valid UTF-8 (byte {bad.start + 1})."
    return f"Line is not valid JSON: {error.msg} at column {error.colno}."


def _envelope(row: dict[str, Any], line: int, rules: LineRules) -> tuple[str, str, dict[str, Any]]:
    endpoint = rules.endpoint or CHAT
    if rules.render is not None:
        return _custom_id(row, line), endpoint, _from_template(row, rules.render, endpoint)
    if "body" in row or "url" in row or "method" in row:
        return _batch_line(row, rules)
    custom_id = _custom_id(row, line)
    row.pop("custom_id", None)
    return custom_id, endpoint, _from_simple(row, endpoint)


def _batch_line(row: dict[str, Any], rules: LineRules) -> tuple[str, str, dict[str, Any]]:
    for name in ("custom_id", "method", "url", "body"):
        if name not in row:
            raise _LineError("invalid_request", f"Field '{name}' is missing.")
    if row["method"] != "POST":
        raise _LineError("invalid_request", f"Field 'method' is {_shown(row['method'])}; only \"POST\" is possible.")
    custom_id, url, body = row["custom_id"], row["url"], row["body"]
    if not isinstance(custom_id, str) or not custom_id:
        raise _LineError("invalid_request", f"Field 'custom_id' is {_shown(custom_id)}; it must be a non-empty string.")
    if not isinstance(url, str) or url not in INPUT_FIELD:
        raise _LineError("invalid_request", f"Field 'url' is {_shown(url)}; use one of {', '.join(INPUT_FIELD)}.")
    if rules.endpoint is not None and url != rules.endpoint:
        raise _LineError("url_mismatch", f"Field 'url' is {url}, but the batch's endpoint is {rules.endpoint}.")
    if not isinstance(body, dict):
        raise _LineError("invalid_request", f"Field 'body' is {_kind(body)}, not an object.")
    return custom_id, url, body


def _custom_id(row: dict[str, Any], line: int) -> str:
    custom_id = row.get("custom_id")
    if custom_id is None:
        return f"line-{line}"
    if not isinstance(custom_id, str) or not custom_id:
        raise _LineError("invalid_request", f"Field 'custom_id' is {_shown(custom_id)}; it must be a non-empty string.")
    return custom_id


def _from_simple(row: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """``{"prompt": …}`` becomes what the endpoint wants; everything else in the row is a body field."""
    wanted = INPUT_FIELD[endpoint]
    if "prompt" in row and wanted != "prompt" and wanted not in row:
        prompt = row.pop("prompt")
        row[wanted] = [{"role": "user", "content": prompt}] if wanted == "messages" else prompt
        if not isinstance(prompt, str):
            raise _LineError("invalid_request", f"Field 'prompt' is {_kind(prompt)}, not a string.")
    if wanted not in row:
        raise _LineError(
            "invalid_request",
            f"Line has neither 'body' nor 'prompt' nor '{wanted}'; for other rows use --prompt 'TEMPLATE'.",
        )
    return row


def _from_template(row: dict[str, Any], render: Callable[[Mapping[str, Any]], str], endpoint: str) -> dict[str, Any]:
    try:
        prompt = render(row)
    except KeyError as missing:
        raise _LineError(
            "invalid_request", f"The row has no field '{missing.args[0]}', which the prompt template names."
        ) from None
    return _from_simple({"prompt": prompt}, endpoint)


def _complete(body: dict[str, Any], url: str, rules: LineRules) -> None:
    """Apply defaults and check what every endpoint needs."""
    for name, value in rules.defaults.items():
        body.setdefault(name, value)
    if rules.model is not None:
        body.setdefault("model", rules.model)
    if body.get("stream"):
        raise _LineError("invalid_request", "Field 'stream' is true; a batch cannot stream.")
    if "model" in body and (not isinstance(body["model"], str) or not body["model"]):
        raise _LineError("invalid_request", f"Field 'model' is {_shown(body['model'])}; it must be a non-empty string.")
    wanted = INPUT_FIELD[url]
    content = body.get(wanted)
    if content is None:
        raise _LineError("invalid_request", f"Field 'body' has no '{wanted}'.")
    if wanted == "messages":
        if (
            not isinstance(content, list)
            or not content
            or not all(isinstance(m, dict) and "role" in m for m in content)
        ):
            raise _LineError("invalid_request", "Field 'messages' must be a non-empty list of objects with a 'role'.")
    elif not isinstance(content, (str, list)) or not content:
        raise _LineError("invalid_request", f"Field '{wanted}' must be a non-empty string or list.")
    if rules.system is not None and not (isinstance(content[0], dict) and content[0].get("role") in _SYSTEM_ROLES):
        _set_system(body, url, rules.system)


def _set_system(body: dict[str, Any], url: str, system: str) -> None:
    """Where the endpoint has a place for it; a batch of another endpoint is refused as a whole (``check_system``)."""
    if url == CHAT:
        body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
    elif url == RESPONSES and body.get("instructions") is None:
        body["instructions"] = system


def _is_deterministic(url: str, body: Mapping[str, Any]) -> bool:
    return url == EMBEDDINGS or body.get("seed") is not None or body.get("temperature") == 0


def _dump(value: object, *, option: int | None = None) -> bytes:
    """As JSON. What can be read can be too deep to be written: 1,024 levels against 254."""
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        raise _LineError("invalid_request", "Line is nested too deeply; 250 levels are possible.") from None


def _normalise(value: Any) -> Any:
    """Integral floats as integers, all the way down."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {name: _normalise(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else _dump(value).decode()


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    text = _dump(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
