"""The live view, drawn from made-up readings."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from cli.progress import (
    Reading,
    Speed,
    Speedometer,
    drawing,
    elapsed_of,
    error_lines,
    facts,
    follow,
    furthest,
    plain_line,
)
from cli.summary import advice
from synthgen.batch import Batch, BatchOptions, Counts, Progress
from synthgen.ports import ErrorGroup
from synthgen.states import BatchState, ShardState
from tests.workshop import Workshop, questions

NOTHING = Counts()
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MILLIONS = Counts(
    6_900_000, 31_000, 1_200_000, 6_012_000_000, 23_455_000_000, 1_023_300_000, 4_002_100_000, 4_312.5, 71.2
)


def reading(
    counts: Counts = NOTHING, *, total: int = 100, running: int = 0, rejected: int = 0, **batch: object
) -> Progress:
    values: dict[str, object] = {
        "id": "batch_0123456789abcdef01234567",
        "name": "questions",
        "state": BatchState.IN_PROGRESS,
        "options": BatchOptions(),
        "fingerprint": "",
        "created_at": NOON,
        "input_key": "",
        "input_bytes": 0,
        "input_lines": total + rejected,
        "total": total,
        "rejected": rejected,
        "shards": 1,
    }
    return Progress(Batch(**(values | batch)), counts, running, {ShardState.RUNNING: 1})  # type: ignore[arg-type]


def drawn(shown: Reading, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawing(shown, width))
    return capture.get().splitlines()


GROUPS = [
    ErrorGroup("rate_limited", 2, "Too many\n requests", 17, "a"),
    ErrorGroup("server_error", 1, "It broke.", 4, "b"),
    ErrorGroup("request_timeout", 1, "No reply within 600 s.", 4, "b"),
    ErrorGroup("context_length_exceeded", 1, "Too long.", 4, "b"),
]


def test_the_view_shows_everything_that_is_promised() -> None:
    counts = Counts(690, 3, 120, 60_120, 234_551, 10_233, 40_021, 0.4312, 0.0712)
    shown = Reading(
        reading(counts, total=1_319, running=256, rejected=4), Speed(31.2, 2_110, 8_230, 130), 41, GROUPS, "Stopping."
    )
    text = "\n".join(drawn(shown, 80))
    for part in (
        "questions",
        "in_progress",
        "693 of 1,319",
        "690 succeeded, 3 failed, 4 rejected",
        "120 answers from it (17.3%)",
        "60,120 in, 234,551 out; saved 10,233 in, 40,021 out",
        "$0.4312 spent, $0.0712 saved",
        "256 running, 370 pending",
        "31.2 requests/s, 2,110 tokens/s in, 8,230 tokens/s out",
        "0:41 elapsed, about 2:10 left",
        "2 x rate_limited: Too many requests",
        "and 1 other cause",
        "Stopping.",
    ):
        assert part in text


@pytest.mark.parametrize("width", [80, 120])
def test_ten_million_rows_fit_the_terminal(width: int) -> None:
    shown = Reading(
        reading(MILLIONS, total=10_000_000, running=25_600, rejected=1_234_567),
        Speed(1_312.4, 1_311_210, 18_230_000, 270_000),
        450_000,
        GROUPS,
    )
    lines = drawn(shown, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_a_view_without_any_answer_divides_by_nothing() -> None:
    assert "0 of 100" in "\n".join(drawn(Reading(reading()), 80))
    assert "0 of 0" in "\n".join(drawn(Reading(reading(total=0)), 80))


def test_a_pipe_gets_one_plain_line() -> None:
    line = plain_line(Reading(reading(Counts(40, 2, 10), running=8), Speed(4.0, 10, 20, 15), 10.0))
    assert line.startswith(
        "in_progress: 42 of 100 (42.0%); 2 failed, 10 cached, 0 rejected; 8 running, 50 pending; 4.0 re"
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (Counts(2, cost=0.5), "$0.5000 spent, $0.00 saved"),
        (Counts(2, unpriced=2), "spent unknown (give --input-price and --output-price), $0.00 saved"),
        (Counts(2, cost=0.5, unpriced=1), "at least $0.5000 spent, $0.00 saved"),
        (Counts(2, cached=2, unpriced_cached=2), "$0.00 spent, saved unknown"),
    ],
)
def test_money_that_nobody_counted_is_not_told_as_nothing(counts: Counts, said: str) -> None:
    assert dict(facts(reading(counts)))["money"] == said


def test_speed_is_that_of_the_last_seconds() -> None:
    meter = Speedometer()
    assert meter.read(reading(Counts(50)), 0.0) == Speed()
    for second in range(1, 30):
        meter.read(reading(Counts(50, prompt_tokens=10 * second)), float(second))
    speed = meter.read(reading(Counts(65, prompt_tokens=590)), 30.0)
    assert speed.requests == pytest.approx(1.0)
    assert speed.tokens_in == pytest.approx(20 + 2 * 10 / 3, abs=10)
    assert speed.left == pytest.approx(35.0)


def test_speed_is_unknown_while_nothing_moves() -> None:
    meter = Speedometer()
    meter.read(reading(Counts(5)), 0.0)
    assert meter.read(reading(Counts(5)), 10.0) == Speed()
    assert meter.read(reading(Counts(4)), 20.0) == Speed()


def test_what_was_shown_as_answered_stays_when_a_shard_is_given_back() -> None:
    before = reading(Counts(30), running=20)
    now = reading(Counts(10), state=BatchState.PAUSED)
    assert furthest(before, now).counts.succeeded == 30
    assert furthest(before, now).batch.state is BatchState.PAUSED
    assert furthest(now, before) is before


def test_elapsed_time_ends_with_the_batch() -> None:
    ended = reading(started_at=NOON, ended_at=NOON.replace(minute=5))
    assert elapsed_of(ended) == 300.0
    assert elapsed_of(ended, NOON.replace(minute=4)) == 60.0
    assert elapsed_of(reading()) == 0.0


def test_only_the_commonest_errors_are_listed() -> None:
    assert [label for label, _ in error_lines(GROUPS)] == ["errors", "", "", ""]
    assert error_lines(GROUPS[:1]) == [("errors", "2 x rate_limited: Too many requests")]
    assert error_lines([]) == []


def test_advice_is_given_where_there_is_something_to_do() -> None:
    assert advice(reading(Counts(100))) == []
    assert len(advice(reading(Counts(100), rejected=2))) == 1
    failed, again = advice(reading(Counts(99, 1)))
    assert "synthgen errors batch_0123456789abcdef01234567" in failed
    assert "synthgen retry batch_0123456789abcdef01234567" in again
    assert max(map(len, (failed, again))) < 80


def test_following_ends_when_the_caller_says_so_and_gives_the_last_reading(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3))
    seen: list[int] = []

    def goes_on(progress: Progress) -> bool:
        seen.append(progress.counts.finished)
        return progress.counts.finished < 3

    progress = follow(workshop.services, batch.id, goes_on=goes_on, wait=lambda _: workshop.run(batch))
    assert seen == [0, 3]
    assert progress.batch.state is BatchState.COMPLETED
