"""Any provider that LiteLLM knows. Its retries are off (they are the lane's), its logging is quiet, it is imported at
``start`` and not before: that takes 4 to 9 seconds and 200 MB.

A call costs about 10 ms of CPU, so a process does some hundred a second: for OpenAI-compatible servers use ``openai``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Final

import orjson

from synthgen.engines.base import EngineSpec, Unmanaged
from synthgen.engines.openai import base_url, fault_of, one_line, provider_of
from synthgen.engines.refusals import Refusal, classify
from synthgen.errors import EngineError, FatalError, PermanentError, RetryableError, Unreachable
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Request
from synthgen.response import TIMED_OUT, Reply, usage_of

_CALLS: Final[Mapping[str, str]] = {
    CHAT: "acompletion",
    COMPLETIONS: "atext_completion",
    EMBEDDINGS: "aembedding",
    RESPONSES: "aresponses",
}
_PERMANENT: Final[Mapping[str, str]] = {
    "ContextWindowExceededError": "context_length_exceeded",
    "ContentPolicyViolationError": "content_policy_violation",
}
"""Classes whose HTTP status does not say what they mean, with our code for them."""
_NO_REPLY: Final = frozenset(
    {"ConnectError", "ReadError", "WriteError", "RemoteProtocolError", "ServerDisconnectedError", "ClientOSError"}
)
"""What httpx and aiohttp raise deep below a LiteLLM error that pretends to be an HTTP 500."""
_KEYS: Final = "SYNTHGEN_API_KEY, or the provider's own variable such as ANTHROPIC_API_KEY,"


class LiteLLMEngine(Unmanaged):
    """``EngineSpec.options`` go to LiteLLM as they are, for example ``api_version`` or ``aws_region_name``.

    The provider in cache keys is ``litellm``, because a model's name (``anthropic/…``) tells the rest; with a base URL
    it is that URL's host.
    """

    name = "litellm"

    def __init__(self, spec: EngineSpec) -> None:
        host = provider_of(base_url(spec.base_url)) if spec.base_url else "litellm"
        self.provider = spec.provider or host
        self.in_flight = spec.in_flight or 64
        self._shown = spec.base_url or "The provider"
        self._spec = spec
        self._litellm: ModuleType | None = None
        given = {"api_base": spec.base_url, "api_key": spec.api_key}
        self._fixed: Mapping[str, Any] = {
            **spec.options,
            **{name: value for name, value in given.items() if value},
            "timeout": spec.timeout,
            "num_retries": 0,
            "max_retries": 0,
            "no-log": True,
        }

    async def start(self) -> None:
        """Import LiteLLM and look the model's provider up. Raises FatalError when either cannot be done."""
        self._litellm = _load()
        if self._spec.model is not None:
            try:
                self._litellm.get_llm_provider(self._spec.model, api_base=self._spec.base_url)
            except Exception as error:
                raise FatalError(
                    f"LiteLLM does not know the provider of model {self._spec.model!r}: "
                    "write it as PROVIDER/MODEL, for example openai/gpt-4o-mini.",
                    code="unknown_provider",
                ) from error

    async def health(self) -> None:
        """Nothing: LiteLLM has no check that is free with every provider."""

    async def generate(self, request: Request) -> Reply:
        assert self._litellm is not None, "start() comes first"
        call = getattr(self._litellm, _CALLS[request.url])
        body = request.body if "model" in request.body else {**request.body, "model": self._spec.model}
        try:
            answer = await call(**{**body, **self._fixed})
        except Exception as error:
            raise self._typed(error, body.get("model")) from error
        return self._reply(answer, request.url, str(body.get("model")))

    async def close(self) -> None:
        if self._litellm is None:
            return
        await self._litellm.close_litellm_async_clients()
        with suppress(ImportError):  # not public, and it may move
            from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

            await GLOBAL_LOGGING_WORKER.stop()
        await asyncio.sleep(0)  # let the transports close before the loop does

    def _reply(self, answer: Any, url: str, model: str) -> Reply:
        text = answer.model_dump_json(warnings=False).encode()
        value = orjson.loads(text)
        if fault := fault_of(value, url):
            raise RetryableError(f"{self._shown} answered, but the body is {fault}.", code="bad_reply")
        prompt_tokens, completion_tokens = usage_of(value)
        cost = self._spec.cost(prompt_tokens, completion_tokens)
        return Reply(
            one_line(text, value),
            prompt_tokens,
            completion_tokens,
            self._listed_cost(answer, model) if cost is None else cost,
            request_id=_request_id(answer),
        )

    def _listed_cost(self, answer: Any, model: str) -> float | None:
        """By LiteLLM's price list; a model that is not on it has no known cost."""
        assert self._litellm is not None
        try:
            return float(self._litellm.completion_cost(completion_response=answer, model=model))
        except Exception:  # noqa: BLE001  it raises several kinds, and none concerns the answer
            return None

    def _typed(self, error: Exception, model: str | None) -> EngineError:
        return typed_error(error, url=self._shown, model=model)


def typed_error(error: Exception, *, url: str, model: str | None) -> EngineError:
    """What LiteLLM raised, as one of ours: by class where the status misleads, by what lies below, then by status."""
    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    status, body, headers = _http_reply(causes, error)
    for name in _PERMANENT.keys() & {base.__name__ for base in type(error).__mro__}:
        return PermanentError(_message(error), code=_PERMANENT[name], status_code=status, body=body)
    missing = next((cause for cause in causes if isinstance(cause, ModuleNotFoundError)), None)
    if missing is not None:
        message = f"LiteLLM needs the Python package {missing.name!r} for this: install it beside synthgen."
        return FatalError(message, code="no_package")
    if type(error).__name__ == "Timeout" and not headers:
        return RetryableError(f"No reply in time: {_message(error)}", code=TIMED_OUT)
    if names & _NO_REPLY or any(isinstance(cause, OSError) for cause in causes):
        return Unreachable(f"{url} cannot be reached ({causes[-1]}).")
    return classify(Refusal(status, body, url, model, headers, time.time(), keys=_KEYS))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, down to the HTTP client's own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _http_reply(causes: list[BaseException], error: Exception) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers of the provider's reply. LiteLLM invents replies of its own: those have no headers."""
    for cause in reversed(causes):
        reply = getattr(cause, "response", None)
        if reply is not None and reply.headers:
            return reply.status_code, reply.content, reply.headers
    status = getattr(error, "status_code", None)
    shown = {"error": {"message": _message(error), "type": type(error).__name__}}
    return status if isinstance(status, int) else 500, orjson.dumps(shown), {}


def _message(error: Exception) -> str:
    return str(getattr(error, "message", None) or error)


def _request_id(answer: Any) -> str | None:
    hidden = getattr(answer, "_hidden_params", None) or {}
    found = (hidden.get("additional_headers") or {}).get("llm_provider-x-request-id")
    return found if isinstance(found, str) else None


def _load() -> ModuleType:
    """Import LiteLLM with its own price list (it would fetch one from the network) and quieten it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    try:
        import litellm
    except ImportError as error:
        raise FatalError(
            f"The litellm engine needs the package litellm, which cannot be imported ({error}).", code="no_package"
        ) from error
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    module: ModuleType = litellm
    return module
