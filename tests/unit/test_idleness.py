"""When a worker counts as idle, and what is done about it, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tasks.idleness import Hunger, Idleness, IdleWatch


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Told:
    """Stands where the lane, its engine and the worker are; what it was told."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.asleep = False

    @property
    def engine(self) -> Told:
        return self

    def sleep(self) -> None:
        self.words.append("sleep")
        self.asleep = True

    def end(self) -> None:
        self.words.append("end")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Told:
    return Told()


def watch(idleness: Idleness, told: Any, *, sleep: float | None = None, leave: float | None = None) -> IdleWatch:
    return IdleWatch(idleness, told, sleep=sleep, leave=leave, end=told.end)


def test_a_worker_that_runs_a_shard_is_not_idle_however_long_it_takes(clock: Clock) -> None:
    idleness = Idleness(clock)
    with idleness.busy():
        with idleness.busy():
            clock.seconds += 50
        assert idleness.seconds == 0
    clock.seconds += 3
    assert idleness.seconds == 3


def test_it_ends_after_its_time_and_not_before(clock: Clock, told: Told) -> None:
    looking = watch(Idleness(clock), told, leave=10)
    clock.seconds += 9
    looking.look()
    assert told.words == []
    clock.seconds += 1
    looking.look()
    assert told.words == ["end"]


def test_it_is_put_to_sleep_once_for_each_time_without_work(clock: Clock, told: Told) -> None:
    idleness = Idleness(clock)
    looking = watch(idleness, told, sleep=5)
    for _ in range(3):
        clock.seconds += 5
        looking.look()
    assert told.words == ["sleep"]
    with idleness.busy():
        told.asleep = False
        looking.look()
    clock.seconds += 5
    looking.look()
    assert told.words == ["sleep", "sleep"]


def test_an_engine_that_died_in_its_sleep_and_came_back_awake_is_put_to_sleep_again(clock: Clock, told: Told) -> None:
    looking = watch(Idleness(clock), told, sleep=5)
    clock.seconds += 5
    looking.look()
    told.asleep = False
    looking.look()
    assert told.words == ["sleep", "sleep"]


def test_without_a_limit_nothing_happens(clock: Clock, told: Told) -> None:
    looking = watch(Idleness(clock), told)
    clock.seconds += 1e9
    looking.look()
    assert told.words == []


def noting(asked: list[int]) -> Callable[[], bool]:
    def ask() -> bool:
        asked.append(1)
        return True

    return ask


def test_a_worker_with_a_place_free_asks_for_what_others_hold_now_and_again() -> None:
    asked: list[int] = []
    hunger = Hunger(Idleness(), places=2, ask=noting(asked))
    for _ in range(6):
        hunger.look()
    assert len(asked) == 2


def test_a_place_that_is_free_for_a_moment_is_no_hunger() -> None:
    asked: list[int] = []
    idleness = Idleness()
    hunger = Hunger(idleness, places=1, ask=noting(asked))
    for _ in range(10):
        hunger.look()
        hunger.look()
        with idleness.busy():
            hunger.look()
    assert asked == []


def test_while_the_broker_is_away_it_is_asked_ever_more_rarely_and_then_as_before() -> None:
    asked: list[float] = []
    clock = Clock()

    def ask() -> bool:
        asked.append(clock())
        return len(asked) >= 4

    hunger = Hunger(Idleness(), places=1, ask=ask)
    for _ in range(1_000):
        clock.seconds += 1
        hunger.look()
    assert [after - before for before, after in pairwise(asked)][:5] == [24, 192, 192, 3, 3]
