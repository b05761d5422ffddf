"""How the limit of open files follows the requests in flight, with the system's limits played by the test."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from synthgen.engines import descriptors
from synthgen.engines.base import EngineSpec
from synthgen.engines.descriptors import allow_connections, allow_ports
from synthgen.engines.lane import Lane
from synthgen.engines.mock import MockEngine
from synthgen.retry import RetryPolicy
from tasks import wiring

ENDLESS = resource.RLIM_INFINITY


class Limits:
    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        self.refuses = False

    def get(self, _: int) -> tuple[int, int]:
        return self.now

    def set(self, _: int, limits: tuple[int, int]) -> None:
        if self.refuses:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    played = Limits(1_024, ENDLESS)
    monkeypatch.setattr(resource, "getrlimit", played.get)
    monkeypatch.setattr(resource, "setrlimit", played.set)
    return played


def test_a_limit_that_is_wide_enough_is_left_alone(limits: Limits) -> None:
    assert allow_connections(512) == 512
    assert limits.now == (1_024, ENDLESS)


def test_a_limit_that_is_too_narrow_is_raised(limits: Limits) -> None:
    assert allow_connections(4_096) == 4_096
    assert limits.now == (4_352, ENDLESS)


def test_what_the_system_does_not_allow_is_done_without(limits: Limits) -> None:
    limits.now = (1_024, 2_048)
    assert allow_connections(4_096) == 1_792
    assert limits.now == (2_048, 2_048)


def test_a_system_that_refuses_stays_as_it_is(limits: Limits) -> None:
    limits.refuses = True
    assert allow_connections(4_096) == 768


@pytest.mark.parametrize(("said", "allowed"), [("32768\t60999\n", 21_174), ("nonsense", 12_000), (None, 12_000)])
def test_connections_to_one_address_take_three_quarters_of_the_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, allowed: int
) -> None:
    told = tmp_path / "ip_local_port_range"
    if said is not None:
        told.write_text(said)
    monkeypatch.setattr(descriptors, "_PORTS", told)
    assert allow_ports() == allowed


def test_a_lane_that_wants_more_than_there_are_ports_is_held_back_and_told(
    limits: Limits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wiring, "allow_ports", lambda: 21_174)
    lane = Lane(MockEngine(EngineSpec("mock")), in_flight=32_768, policy=RetryPolicy())
    wiring._make_room(lane)
    lane.close()
    assert lane.in_flight == 21_174
    assert "in flight: 21174, not 32768: this system has too few ports" in caplog.text


def test_no_limit_is_no_limit(limits: Limits) -> None:
    limits.now = (ENDLESS, ENDLESS)
    assert allow_connections(100_000) == 100_000
