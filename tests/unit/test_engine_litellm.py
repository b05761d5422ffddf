"""LiteLLM's exceptions become ours; stand-ins carry what the real ones carry, because the import takes seconds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.litellm import LiteLLMEngine, typed_error
from synthgen.errors import EngineError, FatalError, PermanentError, RateLimited, RetryableError, Unreachable


@dataclass
class HttpReply:
    status_code: int
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class LiteLLMError(Exception):
    def __init__(self, message: str = "It went wrong.", status: int = 500, reply: HttpReply | None = None) -> None:
        super().__init__(message)
        self.message, self.status_code = message, status
        self.response = reply


class BadRequestError(LiteLLMError):
    pass


class ContextWindowExceededError(BadRequestError):
    pass


class ContentPolicyViolationError(BadRequestError):
    pass


class Timeout(LiteLLMError):
    pass


class ReadError(Exception):
    pass


def typed(error: Exception, cause: BaseException | None = None) -> EngineError:
    error.__cause__ = cause
    return typed_error(error, url="http://host/v1", model="openai/small")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextWindowExceededError(status=400), "context_length_exceeded"),
        (ContentPolicyViolationError(status=400), "content_policy_violation"),
        (ContextWindowExceededError(status=500), "context_length_exceeded"),
    ],
)
def test_what_concerns_one_request_is_told_by_class_before_status(error: LiteLLMError, code: str) -> None:
    found = typed(error)
    assert (type(found), found.code, found.status_code) == (PermanentError, code, error.status_code)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, PermanentError),
        (401, FatalError),
        (403, FatalError),
        (404, FatalError),
        (429, RateLimited),
        (500, RetryableError),
        (503, RetryableError),
    ],
)
def test_everything_else_goes_by_its_status(status: int, kind: type[EngineError]) -> None:
    assert type(typed(LiteLLMError(status=status))) is kind


def test_the_providers_own_reply_is_found_below_the_one_that_litellm_invents() -> None:
    real = HttpReply(429, b'{"error":{"message":"Slow.","code":"tokens"}}', {"retry-after": "7"})
    found = typed(LiteLLMError(status=429, reply=HttpReply(429)), cause=LiteLLMError(reply=real))
    assert isinstance(found, RateLimited)
    assert found.retry_after == 7.0
    assert found.body == real.content


def test_an_error_without_a_reply_keeps_its_words() -> None:
    found = typed(BadRequestError("Such a thing is not supported.", status=400))
    assert found.message == "Such a thing is not supported."
    assert b"Such a thing is not supported." in (found.body or b"")


@pytest.mark.parametrize("cause", [ConnectionRefusedError("refused"), ReadError("disconnected"), OSError("no route")])
def test_a_lost_connection_that_poses_as_a_500_is_no_reply(cause: Exception) -> None:
    assert isinstance(typed(LiteLLMError(status=500, reply=HttpReply(500)), cause=cause), Unreachable)


def test_a_time_out_is_a_time_out_whatever_lies_below() -> None:
    found = typed(Timeout(status=408), cause=TimeoutError("reading"))
    assert (type(found), found.code) == (RetryableError, "request_timeout")


def test_a_package_that_litellm_lacks_is_named() -> None:
    found = typed(LiteLLMError(status=500), cause=ModuleNotFoundError("No module named 'mcp'", name="mcp"))
    assert isinstance(found, FatalError)
    assert "'mcp'" in found.message


def test_a_wrong_key_names_where_litellm_takes_keys_from() -> None:
    assert "ANTHROPIC_API_KEY" in typed(LiteLLMError(status=401)).message


def test_causes_that_go_in_a_circle_end() -> None:
    first, second = LiteLLMError(status=400), LiteLLMError(status=400)
    second.__cause__ = first
    assert isinstance(typed(first, cause=second), PermanentError)


def test_the_provider_needs_no_import() -> None:
    specs = [
        EngineSpec("litellm", model="anthropic/x"),
        EngineSpec("litellm", base_url="http://h:9/v1"),
        EngineSpec("litellm", provider="lab"),
    ]
    assert [LiteLLMEngine(spec).provider for spec in specs] == ["litellm", "h:9", "lab"]


def test_making_any_engine_does_not_import_litellm() -> None:
    script = (
        "import sys; from synthgen.engines.registry import ENGINES, make_engine; "
        "from synthgen.engines.base import EngineSpec; "
        "[make_engine(EngineSpec(kind, model='m', command=('serve', '{port}'))) for kind in ENGINES]; "
        "sys.exit('litellm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
