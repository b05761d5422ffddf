"""From an HTTP reply to the typed error: what may be asked again, what fails, what pauses the batch."""

from __future__ import annotations

import orjson
import pytest

from synthgen.engines.refusals import Refusal, classify, retry_after, status_within
from synthgen.errors import EngineError, FatalError, PermanentError, RateLimited, RetryableError


def openai_error(code: str | None = None, kind: str = "some_error", message: str = "It went wrong.") -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def error_for(status: int, body: bytes = openai_error(), **headers: str) -> EngineError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(Refusal(status, body, "http://host/v1", "small", named, now=0.0))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, PermanentError) for status in (400, 405, 410, 413, 415, 422, 451)),
        *((status, RetryableError) for status in (408, 409, 424, 425, 500, 502, 503, 504, 524, 529)),
        (429, RateLimited),
        *((status, FatalError) for status in (301, 307, 401, 402, 403, 404)),
    ],
)
def test_each_status_has_its_meaning(status: int, kind: type[EngineError]) -> None:
    error = error_for(status)
    assert type(error) is kind
    assert error.status_code == status


def test_a_time_out_at_the_provider_is_called_as_our_own() -> None:
    assert error_for(408).code == "request_timeout"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (openai_error("context_length_exceeded"), "context_length_exceeded"),
        (openai_error(None, "invalid_request_error"), "invalid_request_error"),
        (b'{"object":"error","message":"Too long.","type":"BadRequestError","code":400}', "BadRequestError"),
        (b'{"detail":"Field required"}', "http_400"),
        (b'{"error":"nope"}', "http_400"),
        (b"[]", "http_400"),
        (b"<html>Bad Gateway</html>", "http_400"),
        (b"", "http_400"),
    ],
)
def test_the_code_is_the_providers_most_telling_word(body: bytes, code: str) -> None:
    assert error_for(400, body).code == code


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (openai_error(message="Too long."), "Too long"),
        (b'{"object":"error","message":"Too long.","code":400}', "Too long"),
        (b'{"error":"Too long."}', "Too long"),
        (b"Too\nlong.", "Too long"),
    ],
)
def test_the_providers_words_reach_the_message(body: bytes, words: str) -> None:
    assert words in error_for(400, body).message
    assert words in error_for(503, body).message


def test_the_body_is_kept_as_json_on_one_line() -> None:
    assert error_for(400, b'{\n  "error": {"message": "x"}\n}').body == b'{"error":{"message":"x"}}'
    assert orjson.loads(error_for(400, b"<html>\nno\n</html>").body or b"") == {
        "error": {"message": "<html>\nno\n</html>"}
    }


def test_a_huge_page_in_place_of_json_is_cut() -> None:
    error = error_for(502, b"<p>" * 1_000_000)
    assert len(error.body or b"") < 10_000
    assert len(error.message) < 500


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
def test_an_empty_purse_pauses_the_batch_though_it_comes_as_a_rate_limit(code: str) -> None:
    for body in (openai_error(code), openai_error(None, code)):
        error = error_for(429, body)
        assert isinstance(error, FatalError)
        assert "billing" in error.message


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation", "moderation"])
def test_a_403_by_a_content_policy_concerns_one_request(code: str) -> None:
    error = error_for(403, openai_error(code))
    assert (type(error), error.code) == (PermanentError, code)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["http://host/v1", "SYNTHGEN_API_KEY", "OPENAI_API_KEY"]),
        (403, ["http://host/v1", "'small'", "SYNTHGEN_API_KEY"]),
        (404, ["http://host/v1", "'small'", "--base-url", "--model"]),
        (402, ["http://host/v1", "billing"]),
    ],
)
def test_a_fatal_error_says_what_to_fix(status: int, words: list[str]) -> None:
    message = error_for(status).message
    assert all(word in message for word in words)


def test_a_redirect_names_where_to_go() -> None:
    assert "https://host/v1" in error_for(301, b"", location="https://host/v1").message


def test_a_rate_limit_carries_the_wait_the_finer_header_first() -> None:
    error = error_for(429, retry_after="3")
    assert isinstance(error, RateLimited)
    assert error.retry_after == 3.0
    assert retry_after({"retry-after": "3", "retry-after-ms": "2500"}, now=0.0) == 2.5
    assert retry_after({"retry-after": "nan"}, now=0.0) is None
    assert retry_after({}, now=0.0) is None


@pytest.mark.parametrize(
    ("error", "status"), [({"code": 429}, 429), ({"code": "429"}, None), ({"code": 7}, None), ("x", None), (None, None)]
)
def test_only_a_number_that_is_an_error_status_is_taken_for_one(error: object, status: int | None) -> None:
    assert status_within(error) == status
