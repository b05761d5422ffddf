"""When a server that calls itself well is taken to hang: told by requests in flight, replies, tokens and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from synthgen.engines.progress import Progress, Traffic, token_count
from synthgen.errors import PermanentError, RetryableError
from tests.fakes.clock import FakeClock

POLL = 5.0


class Server:
    """A server that is polled every five seconds of a clock that leaps; ``tokens`` is what its metrics say."""

    def __init__(self, *, tokens: float | None = 7.0) -> None:
        self.clock = FakeClock()
        self.traffic = Traffic()
        self.tokens = tokens
        self.asked = 0
        self.begin()

    def begin(self) -> None:
        """A new life."""
        self.progress = Progress(self.traffic, measured=300.0, unmeasured=1800.0)

    def polled_for(self, seconds: float, *, tokens_per_poll: float = 0.0) -> str:
        """What the first poll within that time finds, if one finds anything."""
        for _ in range(int(seconds / POLL)):
            self.clock.advance(POLL)
            if self.tokens is not None:
                self.tokens += tokens_per_poll
            if found := asyncio.run(_awaited(self.progress.stalled(self.clock.monotonic(), self._read))):
                return found
        return ""

    async def _read(self) -> float | None:
        self.asked += 1
        return self.tokens


async def _awaited(told: Awaitable[str]) -> str:
    return await told


def test_requests_in_flight_without_a_reply_or_a_token_for_five_minutes_are_a_stall() -> None:
    server = Server()
    with server.traffic.one(), server.traffic.one():
        assert server.polled_for(300) == ""
        assert server.polled_for(15) == "made no progress for 300 s with 2 requests in flight"


def test_tokens_that_move_are_progress_however_long_a_reply_takes() -> None:
    server = Server()
    with server.traffic.one():
        assert server.polled_for(7200, tokens_per_poll=1) == ""
        assert server.polled_for(290) == ""
        assert server.polled_for(20)


def test_a_reply_is_progress_and_spares_the_look_at_the_tokens() -> None:
    server = Server()
    with server.traffic.one():
        for _ in range(100):
            with server.traffic.one():
                pass
            assert server.polled_for(POLL) == ""
        assert server.asked == 0
        assert server.polled_for(290) == ""


def test_a_server_with_nothing_in_flight_never_stalls_and_the_clock_begins_with_the_next_request() -> None:
    server = Server()
    assert server.polled_for(7200) == ""
    with server.traffic.one():
        assert server.polled_for(290) == ""
    assert server.polled_for(POLL) == ""
    with server.traffic.one():
        assert server.polled_for(290) == ""


def test_a_new_life_begins_with_all_its_time() -> None:
    server = Server()
    with server.traffic.one():
        assert server.polled_for(290) == ""
        server.begin()
        assert server.polled_for(290) == ""


def test_without_token_counters_only_replies_count_and_the_limit_is_half_an_hour() -> None:
    server = Server(tokens=None)
    with server.traffic.one():
        assert server.polled_for(1800) == ""
        assert server.polled_for(10) == "made no progress for 1800 s with 1 request in flight"


def test_counters_that_are_not_readable_for_a_moment_prove_nothing() -> None:
    server = Server()
    with server.traffic.one():
        assert server.polled_for(100) == ""
        server.tokens = None
        assert server.polled_for(900) == ""
        server.tokens = 8.0
        assert server.polled_for(290) == ""


@pytest.mark.parametrize(("error", "answered"), [(PermanentError, 1), (RetryableError, 0)])
def test_a_refusal_is_an_answer_and_an_error_that_may_pass_is_none(error: type[PermanentError], answered: int) -> None:
    traffic = Traffic()
    with pytest.raises(error), traffic.one():
        raise error("no", code="no")
    assert (traffic.in_flight, traffic.answered) == (0, answered)


VLLM = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a token {x}"} 12.0
vllm:prompt_tokens_total{engine="0",model_name="a token {x}"} 1.5e+02
vllm:num_requests_running{engine="0",model_name="a token {x}"} 8.0
http_requests_total{handler="/tokenize",method="POST"} 99.0
python_gc_objects_collected_total 5.0
"""


def test_all_that_metrics_say_of_tokens_is_added_up_and_nothing_else() -> None:
    assert token_count(VLLM) == 162.0


def test_calls_to_decode_count_for_servers_that_count_tokens_only_at_the_end() -> None:
    assert token_count("llamacpp:tokens_predicted_total 10\nllamacpp:n_decode_total 3\n") == 13.0


@pytest.mark.parametrize("text", ["", "<html>tokens</html>", '{"tokens": 5}', "tokens NaN\n", "tokens five\n"])
def test_what_shows_no_tokens_says_nothing(text: str) -> None:
    assert token_count(text) is None
