"""The requests of one shard and what is known of their answers: read, named by key, looked up, settled, written out.

Belongs to one attempt and one thread. Asking is ``run_shard``'s business; nothing here knows an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b

from synthgen.batch import SHARED, Attempt, CacheMode, Counts, EngineIdentity
from synthgen.errors import InputChanged
from synthgen.ports import CacheEntry, RequestRow, Services
from synthgen.request import Request, cache_key, cache_scope, parameters_of, parse_line
from synthgen.response import Response, output_line, read_output_line
from synthgen.sharding import split_lines

_MESSAGE_LENGTH = 2_000


def origin(batch_id: str, line: int) -> int:
    """Names a request of a batch in 63 bits, so that its own checkpoint is told from another's answer."""
    return _batch_number(batch_id) ^ line


@lru_cache(maxsize=256)
def _batch_number(batch_id: str) -> int:
    return int.from_bytes(blake2b(batch_id.encode(), digest_size=8).digest(), "big") >> 1


class Tally:
    """A running sum of ``Counts``: one response at a time without a new value for each."""

    __slots__ = (
        "cached",
        "cached_completion",
        "cached_prompt",
        "completion",
        "cost",
        "failed",
        "prompt",
        "saved",
        "unpriced",
        "unpriced_cached",
        "won",
    )

    def __init__(self) -> None:
        self.won = self.failed = self.cached = 0
        self.prompt = self.completion = self.cached_prompt = self.cached_completion = 0
        self.cost = self.saved = 0.0
        self.unpriced = self.unpriced_cached = 0

    def add(self, response: Response) -> None:
        cost = response.cost or 0.0
        if response.cached:
            self.won += 1
            self.cached += 1
            self.cached_prompt += response.prompt_tokens
            self.cached_completion += response.completion_tokens
            self.saved += cost
            self.unpriced_cached += response.cost is None
            return
        self.won += response.error_code is None
        self.failed += response.error_code is not None
        self.prompt += response.prompt_tokens
        self.completion += response.completion_tokens
        self.cost += cost
        self.unpriced += response.cost is None and response.error_code is None

    def counts(self) -> Counts:
        return Counts(
            succeeded=self.won,
            failed=self.failed,
            cached=self.cached,
            prompt_tokens=self.prompt,
            completion_tokens=self.completion,
            cached_prompt_tokens=self.cached_prompt,
            cached_completion_tokens=self.cached_completion,
            cost=self.cost,
            saved=self.saved,
            unpriced=self.unpriced,
            unpriced_cached=self.unpriced_cached,
        )


class Answers:
    """What one attempt knows. ``requests`` is in input order; lines are 1-based line numbers of the input."""

    def __init__(self, services: Services, attempt: Attempt, identity: EngineIdentity | None) -> None:
        self._services = services
        self._attempt = attempt
        self._batch = attempt.batch
        self._identity = identity
        self._keys: dict[int, bytes] = {}
        self._tally = Tally()
        mode = self._batch.options.cache
        self._fresh = self._batch.created_at if mode is CacheMode.REFRESH else None
        self.requests: dict[int, Request] = {}
        self.responses: dict[int, Response] = {}

    @property
    def counts(self) -> Counts:
        return self._tally.counts()

    @property
    def shared(self) -> set[int]:
        """Lines that are to share one answer with equal lines of the batch."""
        return {line for line, mark in self._attempt.shard.marks if mark == SHARED}

    def key(self, line: int) -> bytes:
        return self._keys[line]

    def open(self, lines: Iterable[int] | None = None) -> list[int]:
        """Those of ``lines`` (default: all) that have no response yet."""
        return [line for line in (self.requests if lines is None else lines) if line not in self.responses]

    def read(self) -> None:
        """Parse the shard's byte range. Raises NotFound, InputChanged when its requests are not those of the submit."""
        shard, identity = self._attempt.shard, self._identity
        raw = self._services.objects.get(self._batch.input_key, start=shard.start, end=shard.end)
        rules = self._batch.options.rules(engine_model=identity.model if identity else None)
        lines = (line for piece in split_lines([raw], max_bytes=rules.max_bytes) for line, _ in piece)
        for number, line in enumerate(lines, start=shard.first_line):
            if number not in self._attempt.rejected:
                request = parse_line(line, number, rules)
                if isinstance(request, Request):
                    self.requests[number] = request
        if len(self.requests) != shard.requests:
            where = self._services.objects.url(self._batch.input_key)
            raise InputChanged(
                f"Shard {shard.number} of the stored input has {len(self.requests)} requests, not {shard.requests}: "
                f"{where} was changed. {InputChanged.what_to_do}"
            )
        if identity is not None:
            self._name_all(identity)

    def carry_over(self) -> None:
        """After ``retry``: what the earlier round answered stays, save the failures that are to run again."""
        if self._attempt.previous_key is None:
            return
        again = self._batch.retry_codes
        for line in self._services.objects.get(self._attempt.previous_key).splitlines():
            response = read_output_line(line)
            if response.succeeded or (again is not None and response.error_code not in again):
                self.settle(response)

    def look_up(self, lines: Sequence[int]) -> list[int]:
        """Settle those that the cache can answer; the others."""
        if not lines or not self._keys:
            return list(lines)
        found = self._services.cache.lookup(list({self._keys[line] for line in lines}), not_before=self._fresh)
        for line in lines:
            entry = found.get(self._keys[line])
            if entry is not None:
                self.settle(self._from_entry(self.requests[line], entry))
        return self.open(lines)

    def settle(self, response: Response) -> None:
        self.responses[response.line] = response
        self._tally.add(response)

    def checkpoint(self, responses: Sequence[Response]) -> None:
        """Write the successes to the cache in one statement, then settle all."""
        entries = [self._to_entry(response) for response in responses if response.succeeded]
        if entries:
            self._services.cache.put(entries, replace_before=self._fresh)
        for response in responses:
            self.settle(response)

    def share(self, response: Response, line: int) -> None:
        """Give the outcome of one line to another that asks the very same; its success counts as cached there."""
        self.settle(
            replace(
                response,
                line=line,
                custom_id=self.requests[line].custom_id,
                cached=response.succeeded,
                attempts=0,
                latency_ms=0,
                ttft_ms=None,
                itl_ms=None,
            )
        )

    def results(self) -> tuple[list[RequestRow], bytes]:
        """The output lines in input order as one object, and a row for each that says where it is."""
        rows, lines, offset = [], [], 0
        for number, request in self.requests.items():
            response = self.responses[number]
            line = output_line(self._batch.id, response, parameters_of(request.body))
            rows.append(_row(response, offset, len(line)))
            lines.append(line)
            offset += len(line)
        return rows, b"".join(lines)

    def _name_all(self, identity: EngineIdentity) -> None:
        scope = cache_scope(
            namespace=self._batch.cache_namespace, provider=identity.provider, revision=identity.revision
        )
        marks = dict(self._attempt.shard.marks)
        for number, request in self.requests.items():
            occurrence = max(1, marks.get(number, 1))
            self._keys[number] = cache_key(request.base_key, scope=scope, occurrence=occurrence)

    def _from_entry(self, request: Request, entry: CacheEntry) -> Response:
        own = entry.origin == origin(self._batch.id, request.line)
        return Response(
            line=request.line,
            custom_id=request.custom_id,
            body=entry.body,
            status_code=entry.status_code,
            prompt_tokens=entry.prompt_tokens,
            completion_tokens=entry.completion_tokens,
            cost=entry.cost,
            cached=not own,
            attempts=entry.attempts if own else 0,
            latency_ms=entry.latency_ms if own else 0,
            engine=entry.engine,
            model=entry.model,
            request_id=entry.request_id,
            ttft_ms=entry.ttft_ms if own else None,
            itl_ms=entry.itl_ms if own else None,
        )

    def _to_entry(self, response: Response) -> CacheEntry:
        assert response.body is not None
        options = self._batch.options
        return CacheEntry(
            key=self._keys[response.line],
            namespace=self._batch.cache_namespace,
            model=response.model,
            body=response.body,
            prompt_tokens=response.prompt_tokens,
            completion_tokens=response.completion_tokens,
            cost=response.cost,
            ttl=None if options.cache is CacheMode.OFF else options.cache_ttl,  # the end of the batch removes it
            origin=origin(self._batch.id, response.line),
            attempts=response.attempts,
            latency_ms=response.latency_ms,
            status_code=response.status_code or 200,
            request_id=response.request_id,
            engine=response.engine,
            ttft_ms=response.ttft_ms,
            itl_ms=response.itl_ms,
        )


def _row(response: Response, offset: int, length: int) -> RequestRow:
    return RequestRow(
        line=response.line,
        custom_id=response.custom_id,
        succeeded=response.succeeded,
        cached=response.cached,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        cost=response.cost,
        latency_ms=response.latency_ms,
        attempts=response.attempts,
        status_code=response.status_code,
        error_code=response.error_code,
        error_message=response.error_message and response.error_message[:_MESSAGE_LENGTH],
        offset=offset,
        length=length,
    )
