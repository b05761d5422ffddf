"""Back-off and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.retry import RetryPolicy, backoff, parse_retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(base=0.5, cap=3.0)
    assert [backoff(policy, n, rng=lambda: 1.0) for n in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(failures=st.integers(1, 10_000), draw=st.floats(0, 1))
def test_the_pause_is_anywhere_between_nothing_and_the_ceiling(failures: int, draw: float) -> None:
    policy = RetryPolicy()
    pause = backoff(policy, failures, rng=lambda: draw)
    assert 0.0 <= pause <= policy.cap
    assert pause == pytest.approx(draw * backoff(policy, failures, rng=lambda: 1.0))


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("7", 7.0), ("1.5", 1.5), ("-3", 0.0), (" 2 ", 2.0)])
def test_retry_after_in_seconds(text: str, seconds: float) -> None:
    assert parse_retry_after(text, now=NOW) == seconds


@pytest.mark.parametrize(("ahead", "seconds"), [(90, 90.0), (0, 0.0), (-90, 0.0)])
def test_retry_after_as_a_date_counts_from_now_and_never_backwards(ahead: int, seconds: float) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW + ahead, UTC), usegmt=True)
    assert parse_retry_after(date, now=NOW) == seconds


@pytest.mark.parametrize("text", [None, "", "soon", "nan", "inf", "-inf", "1e999", "Fri, 99 Foo 2026", "12:00"])
def test_a_retry_after_that_means_nothing_is_not_followed(text: str | None) -> None:
    assert parse_retry_after(text, now=NOW) is None


@given(st.text())
def test_no_header_can_break_the_parser_or_stop_the_lane_for_ever(text: str) -> None:
    seconds = parse_retry_after(text, now=NOW)
    assert seconds is None or 0.0 <= seconds < float("inf")
