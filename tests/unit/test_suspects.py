"""A request that kills the engine is found and fails alone; everyone else is answered."""

from __future__ import annotations

import pytest

from synthgen.errors import EngineGone, EngineLost, FatalError, RetryableError
from synthgen.request import Request
from synthgen.response import Reply
from tests.fakes.scripted_engine import Lanes, ScriptedEngine, after, all_of, failing, request, requests


class FragileEngine(ScriptedEngine):
    """Dies, with everything in flight, whenever one of ``poison`` is asked; ``kills`` more deaths come from outside."""

    def __init__(self, *poison: str, kills: int = 0) -> None:
        super().__init__(self._live_or_die)
        self.poison = set(poison)
        self.kills = kills
        self.deaths = 0

    async def _live_or_die(self, request: Request) -> Reply:
        born = self.deaths
        await after(0.1)
        if born == self.deaths and (request.custom_id in self.poison or self.kills):
            self.kills = max(0, self.kills - 1)
            self.deaths += 1
        if born != self.deaths:
            raise EngineLost("died")
        return Reply(b"{}")

    async def generate(self, request: Request) -> Reply:
        self.answer = lambda request, number: self._live_or_die(request)
        return await super().generate(request)


@pytest.mark.parametrize("count", [1, 2, 9, 100, 300])
@pytest.mark.parametrize("in_flight", [1, 4, 64])
def test_the_request_that_kills_the_engine_fails_alone(lane_with: Lanes, count: int, in_flight: int) -> None:
    culprit = f"r{count // 2 + 1}"
    found = all_of(lane_with(FragileEngine(culprit), in_flight=in_flight).ask(requests(count)))
    assert len(found) == count
    assert {name for name, response in found.items() if not response.succeeded} == {culprit}
    assert found[culprit].error_code == "engine_crashed"


def test_two_culprits_are_both_found(lane_with: Lanes) -> None:
    found = all_of(lane_with(FragileEngine("r3", "r70"), in_flight=64).ask(requests(100)))
    assert {name for name, response in found.items() if not response.succeeded} == {"r3", "r70"}


@pytest.mark.parametrize("kills", [1, 2])
def test_an_engine_that_is_killed_from_outside_costs_no_request(lane_with: Lanes, kills: int) -> None:
    found = all_of(lane_with(FragileEngine(kills=kills), in_flight=16).ask(requests(50)))
    assert len(found) == 50
    assert all(response.succeeded for response in found.values())


def test_few_deaths_find_the_culprit_among_many(lane_with: Lanes) -> None:
    engine = FragileEngine("r77")
    all_of(lane_with(engine, in_flight=256).ask(requests(1000)))
    assert engine.deaths <= 5


def test_a_shard_that_stops_meanwhile_does_not_hold_up_the_others(lane_with: Lanes) -> None:
    engine = FragileEngine("a3")
    lane = lane_with(engine, in_flight=8)
    first, second = lane.ask(requests(20, name="a")), lane.ask(requests(20, name="b"))
    first.stop()
    assert len(all_of(second)) == 20
    assert first.wait(10)


def test_an_engine_that_cannot_come_back_leaves_the_requests_unanswered(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: EngineLost("died") if number == 1 else FatalError("gone", code="x"))
    asking = lane_with(engine, in_flight=4).ask(requests(20))
    assert all_of(asking) == {}
    assert asking.fatal is not None


def test_the_deadline_of_a_request_does_not_run_while_the_engine_is_away(lane_with: Lanes) -> None:
    tries = [failing(900, EngineLost("died")), RetryableError("Overloaded.", code="server_error"), Reply(b"{}")]
    engine = ScriptedEngine(lambda request, number: tries[number - 1])
    assert all_of(lane_with(engine, deadline=60.0).ask([request(1)]))["r1"].succeeded


class MortalEngine(FragileEngine):
    """Is given up after ten deaths that nobody explains, as a server of our own is."""

    forgiven = 0

    async def generate(self, request: Request) -> Reply:
        if self.deaths - self.forgiven >= 10:
            raise EngineGone("It died 10 times.", code="engine_gone")
        return await super().generate(request)

    def forgive(self) -> None:
        self.forgiven = self.deaths


@pytest.mark.parametrize("culprits", [("r5", "r2000", "r4001"), tuple(f"r{n}" for n in range(100, 4000, 333))])
def test_any_number_of_culprits_is_found_before_the_engine_is_given_up(
    lane_with: Lanes, culprits: tuple[str, ...]
) -> None:
    found = all_of(lane_with(MortalEngine(*culprits), in_flight=4096).ask(requests(4096)))
    assert len(found) == 4096
    assert {name for name, response in found.items() if not response.succeeded} == set(culprits)


def test_an_engine_that_dies_of_whatever_it_is_asked_is_not_forgiven(lane_with: Lanes) -> None:
    asking = lane_with(MortalEngine(*(f"r{n}" for n in range(1, 101))), in_flight=8).ask(requests(100))
    assert all(response.error_code == "engine_crashed" for response in all_of(asking).values())
    assert isinstance(asking.fatal, EngineGone)
