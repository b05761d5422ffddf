"""Numbers as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cli import quantities as q


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0:00"), (41.4, "0:41"), (725, "12:05"), (10_931, "3:02:11"), (187_506, "2 d 04:05:06")],
)
def test_a_span_of_time_is_a_clock(seconds: float | None, text: str) -> None:
    assert q.clock(seconds) == text


@pytest.mark.parametrize(
    ("dollars", "text"), [(0, "$0.00"), (0.000012, "$0.000012"), (0.4312, "$0.4312"), (1_234.5, "$1,234.50")]
)
def test_a_small_bill_has_more_digits(dollars: float, text: str) -> None:
    assert q.money(dollars) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "-"), (1, 3, "33.3%"), (999_999, 1_000_000, "99.9%"), (5, 5, "100.0%")]
)
def test_a_share_is_never_rounded_up_to_the_whole(part: int, whole: int, text: str) -> None:
    assert q.share(part, whole) == text


@pytest.mark.parametrize(
    ("number", "text"), [(9_999_999, "9,999,999"), (60_120_000, "60.1M"), (23_455_100_000, "23.46G")]
)
def test_long_counts_are_shortened(number: int, text: str) -> None:
    assert q.compact(number) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 lines"), (1, "1 line"), (1_200, "1,200 lines")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert q.of(number, "line") == text


@pytest.mark.parametrize(("number", "text"), [(999, "999 B"), (4_000_000, "4.0 MB"), (2e12, "2.0 TB")])
def test_bytes_have_decimal_units(number: float, text: str) -> None:
    assert q.size(number) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (timedelta(seconds=-3), "0 s"),
        (timedelta(seconds=119), "119 s"),
        (timedelta(minutes=30), "30 min"),
        (timedelta(days=3), "3 d"),
    ],
)
def test_an_age_has_one_unit(passed: timedelta, text: str) -> None:
    assert q.age(passed) == text


@pytest.mark.parametrize(("number", "text"), [(None, "-"), (5.62, "5.6"), (1_312.4, "1,312")])
def test_a_slow_rate_has_a_decimal(number: float | None, text: str) -> None:
    assert q.rate(number) == text
