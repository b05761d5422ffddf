"""The lane on an event loop whose clock leaps, with an engine that does as each test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable

import pytest

from synthgen.engines.lane import ENOUGH_FAILURES, Asking, Lane, new_loop
from synthgen.errors import FatalError, PermanentError, RateLimited, RetryableError, Unreachable
from synthgen.request import Request
from synthgen.response import TIMED_OUT, Reply, Response
from synthgen.retry import RetryPolicy
from tests.fakes.leaping_loop import LeapingLoop
from tests.fakes.scripted_engine import (
    PATIENCE,
    Gate,
    Lanes,
    ScriptedEngine,
    after,
    all_of,
    failing,
    once,
    request,
    requests,
)

OVERLOADED = RetryableError("Overloaded.", code="server_error", status_code=503, body=b'{"error":{}}')
NO_REPLY = Unreachable("http://nowhere:1/v1 cannot be reached.")


def test_every_request_gets_exactly_one_response(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: after(0.1 * (request.line % 7)))
    found = all_of(lane_with(engine, in_flight=16).ask(requests(300)))
    assert set(found) == {f"r{n}" for n in range(1, 301)}
    assert all(response.succeeded for response in found.values())
    assert set(engine.tries.values()) == {1}


def test_no_more_requests_are_in_flight_than_allowed_over_all_askings(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: after(1))
    lane = lane_with(engine, in_flight=5)
    for asking in [lane.ask(requests(20, name=name)) for name in "abc"]:
        all_of(asking)
    assert engine.most == 5


def test_without_a_wish_the_engines_own_limit_holds(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: after(1))
    all_of(lane_with(engine).ask(requests(20)))
    assert engine.most == engine.in_flight


def test_a_response_tells_who_answered_what_it_cost_and_after_how_many_tries(lane_with: Lanes) -> None:
    reply = Reply(b'{"x":1}', 3, 4, 0.5, request_id="req_1")
    engine = ScriptedEngine(lambda request, number: OVERLOADED if number < 3 else reply)
    response = all_of(lane_with(engine).ask([request(7)]))["r7"]
    assert response == Response(
        line=7,
        custom_id="r7",
        body=b'{"x":1}',
        status_code=200,
        prompt_tokens=3,
        completion_tokens=4,
        cost=0.5,
        attempts=3,
        latency_ms=response.latency_ms,
        engine="scripted",
        model="m",
        request_id="req_1",
    )


def test_asking_nothing_is_finished_at_once(lane_with: Lanes) -> None:
    assert all_of(lane_with(ScriptedEngine()).ask([])) == {}


def test_a_small_asking_does_not_wait_for_a_big_one_before_it(lane_with: Lanes) -> None:
    asked: list[Asking] = []
    engine = ScriptedEngine(lambda request, number: once(lambda: len(asked) == 2, then=1))
    lane = lane_with(engine, in_flight=1)
    asked += [lane.ask(requests(100, name="big")), lane.ask(requests(3, name="small"))]
    for asking in asked:
        all_of(asking)
    assert max(engine.times(f"small{n}")[0] for n in (1, 2, 3)) < 10


def test_the_oldest_asking_ends_first_so_that_shards_do_not_all_end_at_once(lane_with: Lanes) -> None:
    asked: list[Asking] = []
    engine = ScriptedEngine(lambda request, number: once(lambda: len(asked) == 3, then=1))
    lane = lane_with(engine, in_flight=2)
    asked += [lane.ask(requests(60, name=name)) for name in "abc"]
    for asking in asked:
        all_of(asking)
    last = {name: max(engine.times(f"{name}{n}")[0] for n in range(1, 61)) for name in "abc"}
    assert last["a"] + 10 < last["b"] < last["c"]


def test_a_failed_try_is_repeated_after_a_growing_pause(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED if number < 4 else Reply(b"{}"))
    assert all_of(lane_with(engine).ask([request(1)]))["r1"].succeeded
    assert engine.times("r1") == pytest.approx([0, 0.5, 1.5, 3.5])


def test_a_request_that_waits_for_its_next_try_holds_no_place(lane_with: Lanes) -> None:
    fails_once = lambda request, number: OVERLOADED if (request.line, number) == (1, 1) else after(0.1)  # noqa: E731
    engine = ScriptedEngine(fails_once)
    all_of(lane_with(engine, in_flight=1).ask(requests(3)))
    assert [who for who, _ in engine.asked] == ["r1", "r2", "r3", "r1"]


def test_a_request_whose_attempts_are_used_up_fails_with_the_last_reply(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED)
    response = all_of(lane_with(engine, attempts=3).ask([request(1)]))["r1"]
    assert (response.error_code, response.error_message) == ("server_error", "Overloaded.")
    assert (response.status_code, response.body, response.attempts) == (503, b'{"error":{}}', 3)


def test_a_request_that_times_out_on_every_try_says_so(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: RetryableError("No reply within 9 s.", code=TIMED_OUT))
    response = all_of(lane_with(engine).ask([request(1)]))["r1"]
    assert (response.error_code, response.status_code, response.body) == ("request_timeout", None, None)


def test_no_try_starts_after_the_deadline(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED)
    response = all_of(lane_with(engine, attempts=99, deadline=4.0).ask([request(1)]))["r1"]
    assert response.attempts == 4
    assert engine.times("r1") == pytest.approx([0, 0.5, 1.5, 3.5])


def test_a_refused_request_fails_at_once_and_keeps_the_providers_words(lane_with: Lanes) -> None:
    refusal = PermanentError("Too long.", code="context_length_exceeded", status_code=400, body=b'{"error":1}')
    engine = ScriptedEngine(lambda request, number: refusal if request.line == 2 else Reply(b"{}"))
    found = all_of(lane_with(engine).ask(requests(3)))
    assert [found[f"r{n}"].succeeded for n in (1, 2, 3)] == [True, False, True]
    failed = found["r2"]
    assert (failed.error_code, failed.status_code, failed.body, failed.attempts) == (
        "context_length_exceeded",
        400,
        b'{"error":1}',
        1,
    )


def test_a_rate_limit_holds_the_whole_lane_as_long_as_the_provider_says(
    lane_with: Lanes, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request, number: int) -> Awaitable[Reply]:
        limited = RateLimited("Slow down.", retry_after=30)
        return failing(0.5, limited) if (request.line, number) == (1, 1) else after(1)

    engine = ScriptedEngine(answer)
    found = all_of(lane_with(engine, in_flight=2).ask(requests(6)))
    assert all(response.succeeded for response in found.values())
    assert engine.times("r2") == [0]
    assert all(engine.times(f"r{n}")[-1] >= 30.5 for n in (1, 3, 4, 5, 6))
    assert "nothing is sent for 30 s" in caplog.text


def test_rate_limits_use_up_no_attempts(lane_with: Lanes) -> None:
    limited = RateLimited("Slow down.", retry_after=5)
    engine = ScriptedEngine(lambda request, number: limited if number < 20 else Reply(b"{}"))
    response = all_of(lane_with(engine, attempts=2).ask([request(1)]))["r1"]
    assert response.succeeded
    assert response.attempts == 20


def test_many_requests_that_meet_one_rate_limit_lengthen_the_pause_only_once(lane_with: Lanes) -> None:
    limited = RateLimited("Slow down.")
    engine = ScriptedEngine(lambda request, number: failing(0.1, limited) if number < 3 else after(0))
    all_of(lane_with(engine, in_flight=50).ask(requests(50)))
    assert engine.times("r50") == pytest.approx([0, 0.1 + 0.5, 0.1 + 0.5 + 0.1 + 1.0])


def test_a_longer_retry_after_lengthens_a_pause_that_has_begun(lane_with: Lanes) -> None:
    def answer(request: Request, number: int) -> Awaitable[Reply]:
        limited = RateLimited("Slow down.", retry_after=10.0 * request.line)
        return failing(1, limited) if number == 1 else after(0)

    engine = ScriptedEngine(answer)
    all_of(lane_with(engine).ask(requests(3)))
    assert [engine.times(f"r{n}")[-1] for n in (1, 2, 3)] == pytest.approx([31, 31, 31])


@pytest.mark.parametrize("named", [0.0, 0.001])
def test_a_wait_of_next_to_nothing_is_no_wait_and_the_pause_grows_as_without_it(lane_with: Lanes, named: float) -> None:
    limited = RateLimited("Slow down.", retry_after=named)
    engine = ScriptedEngine(lambda request, number: limited if number < 4 else Reply(b"{}"))
    assert all_of(lane_with(engine).ask([request(1)]))["r1"].succeeded
    assert engine.times("r1") == pytest.approx([0, 0.5, 1.5, 3.5])


def test_rate_limits_without_any_wait_lose_no_request_on_the_loop_that_workers_use() -> None:
    pytest.importorskip("uvloop")
    limited = RateLimited("Slow down.", retry_after=0.0)
    engine = ScriptedEngine(lambda request, number: failing(0, limited) if number == 1 else Reply(b"{}"))
    lane = Lane(engine, policy=RetryPolicy(), in_flight=3, make_loop=new_loop, rng=lambda: 0.0)
    lane.start()
    try:
        found = all_of(lane.ask(requests(3)))
    finally:
        lane.close()
    assert [found[f"r{n}"].succeeded for n in (1, 2, 3)] == [True, True, True]


def test_a_rate_limit_past_the_deadline_stops_the_asking_and_fails_no_request(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: RateLimited("Slow down.", retry_after=3600, body=b"{}"))
    asking = lane_with(engine, deadline=900).ask(requests(3))
    assert all_of(asking) == {}
    assert asking.fatal is not None
    assert asking.fatal.message.startswith("Slow down, and it asks for a pause until 20")
    assert "longer than the 900 s that one request may take (request_deadline): resume the batch then." in str(
        asking.fatal
    )


def test_a_request_that_rate_limits_keep_past_its_deadline_fails(lane_with: Lanes) -> None:
    limited = RateLimited("Slow down.", retry_after=400, body=b"{}")
    engine = ScriptedEngine(lambda request, number: limited)
    response = all_of(lane_with(engine, deadline=900).ask([request(1)]))["r1"]
    assert (response.error_code, response.status_code, response.attempts) == ("rate_limited", 429, 3)


def test_a_fatal_error_stops_every_asking_and_a_later_one_starts_afresh(lane_with: Lanes) -> None:
    bad_key = FatalError("Wrong key.", code="invalid_api_key", status_code=401)
    engine = ScriptedEngine(lambda request, number: bad_key if request.line == 3 else after(1))
    lane = lane_with(engine, in_flight=3)
    first, second = lane.ask(requests(50, name="a")), lane.ask(requests(50, name="b"))
    answered = len(all_of(first)) + len(all_of(second))
    assert first.fatal is second.fatal is bad_key
    assert answered < 10
    assert len(engine.asked) < 10

    engine.answer = lambda request, number: Reply(b"{}")
    assert len(all_of(lane.ask(requests(50, name="c")))) == 50


def test_what_is_in_flight_when_the_engine_turns_fatal_is_still_delivered(lane_with: Lanes) -> None:
    gate = Gate()
    engine = ScriptedEngine(lambda request, number: gate.reply())
    lane = lane_with(engine, in_flight=2)
    slow = lane.ask([request(1, name="slow")])
    gate.wait_for_somebody()
    engine.answer = lambda request, number: FatalError("Wrong key.", code="invalid_api_key")
    all_of(lane.ask([request(1, name="bad")]))
    assert slow.fatal is not None
    assert not slow.finished
    gate.open()
    assert all_of(slow)["slow1"].succeeded


def test_a_broken_asking_that_is_stopped_is_waited_for_until_its_last_reply(lane_with: Lanes) -> None:
    gate = Gate()
    engine = ScriptedEngine(lambda request, number: gate.reply())
    lane = lane_with(engine, in_flight=2)
    slow = lane.ask([request(1, name="slow")])
    gate.wait_for_somebody()
    engine.answer = lambda request, number: FatalError("Wrong key.", code="invalid_api_key")
    lane.ask([request(1, name="bad")])
    assert slow.wait(PATIENCE)
    slow.stop()
    lane.health()  # goes through the loop after the stop
    assert not slow.wait(0)
    gate.open()
    assert slow.wait(PATIENCE)
    assert slow.finished
    assert len(slow.take()) == 1


def test_an_unknown_model_halts_only_those_who_ask_for_it(lane_with: Lanes) -> None:
    unknown = FatalError("No such model.", code="model_not_found", status_code=404)
    engine = ScriptedEngine(lambda request, number: unknown if request.custom_id.startswith("a") else after(1))
    lane = lane_with(engine)
    first, second = lane.ask(requests(20, name="a")), lane.ask(requests(20, name="b"))
    assert all_of(first) == {}
    assert len(all_of(second)) == 20
    assert (first.fatal, second.fatal) == (unknown, None)


def test_an_endpoint_that_nobody_reaches_for_long_is_fatal_and_fails_no_request(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: NO_REPLY)
    asking = lane_with(engine, attempts=2, unreachable_after=60).ask(requests(30))
    assert all_of(asking) == {}
    assert asking.fatal is not None
    assert "http://nowhere:1/v1 cannot be reached" in asking.fatal.message
    assert "60 s" in asking.fatal.message
    assert engine.asked[-1][1] - engine.asked[0][1] == pytest.approx(60, abs=0.1)


def test_an_endpoint_that_comes_back_in_time_costs_no_attempts(lane_with: Lanes) -> None:
    engine = ScriptedEngine()
    engine.answer = lambda request, number: NO_REPLY if engine.times(request.custom_id)[-1] < 50 else Reply(b"{}")
    found = all_of(lane_with(engine, attempts=2, unreachable_after=60).ask(requests(30)))
    assert len(found) == 30
    assert all(response.succeeded for response in found.values())


def test_silence_that_nobody_waited_through_does_not_count(lane_with: Lanes) -> None:
    asked: list[Asking] = []
    sent = threading.Event()

    def answer(request: Request, number: int) -> Awaitable[Reply] | Exception:
        if request.line == 1:
            return NO_REPLY
        sent.set()
        return paused_for_an_hour()

    async def paused_for_an_hour() -> Reply:
        await once(lambda: bool(asked) and asked[0].stopped, then=3600)
        raise NO_REPLY

    engine = ScriptedEngine(answer)
    lane = lane_with(engine, unreachable_after=60)
    asked.append(lane.ask(requests(2)))
    assert sent.wait(PATIENCE)
    asked[0].stop()
    assert all_of(asked[0]) == {}

    engine.answer = lambda request, number: NO_REPLY
    assert all_of(lane.ask([request(1, name="again")])) == {}
    assert engine.times("again1")[-1] - engine.times("again1")[0] == pytest.approx(60, abs=0.1)


def test_a_request_that_breaks_its_connection_while_others_are_answered_uses_up_attempts(lane_with: Lanes) -> None:
    def answer(request: Request, number: int) -> Awaitable[Reply]:
        return breaks() if request.line == 1 else after(0.4)

    async def breaks() -> Reply:
        await asyncio.sleep(0.5)
        raise NO_REPLY

    engine = ScriptedEngine(answer)
    found = all_of(lane_with(engine, in_flight=2, attempts=3).ask(requests(200)))
    assert [response.custom_id for response in found.values() if not response.succeeded] == ["r1"]
    assert (found["r1"].error_code, found["r1"].attempts) == ("connection_error", 3)


def test_many_failures_in_a_row_without_a_success_pause_instead_of_burning_the_batch(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED)
    asking = lane_with(engine, in_flight=4).ask(requests(100))
    found = all_of(asking)
    assert asking.fatal is not None
    assert "keeps failing" in asking.fatal.message
    assert "Overloaded." in asking.fatal.message
    assert len(found) == ENOUGH_FAILURES - 1


def test_a_few_requests_that_all_fail_simply_fail(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED)
    lane = lane_with(engine)
    for name in "abc":
        asking = lane.ask(requests(ENOUGH_FAILURES - 1, name=name))
        assert len(all_of(asking)) == ENOUGH_FAILURES - 1
        assert asking.fatal is None


def test_bad_requests_left_over_at_the_end_of_a_good_asking_are_not_the_engines_fault(lane_with: Lanes) -> None:
    engine = ScriptedEngine(lambda request, number: OVERLOADED if request.line % 2 else after(0.01))
    asking = lane_with(engine, in_flight=8).ask(requests(100))
    found = all_of(asking)
    assert asking.fatal is None
    assert sum(response.succeeded for response in found.values()) == 50


def test_a_bug_in_an_engine_fails_the_request_and_is_logged(lane_with: Lanes, caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine(lambda request, number: KeyError("choices") if request.line == 1 else Reply(b"{}"))
    found = all_of(lane_with(engine).ask(requests(2)))
    assert found["r2"].succeeded
    assert found["r1"].error_code == "engine_error"
    assert "KeyError('choices')" in (found["r1"].error_message or "")
    assert "KeyError" in caplog.text


def test_a_reply_that_the_lane_cannot_take_in_fails_its_request_and_is_logged(
    lane_with: Lanes, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Reply(b"{}", prompt_tokens="many")  # type: ignore[arg-type]  # as a server may say it
    engine = ScriptedEngine(lambda request, number: odd if request.line == 1 else Reply(b"{}"))
    found = all_of(lane_with(engine).ask(requests(2)))
    assert found["r2"].succeeded
    assert found["r1"].error_code == "engine_error"
    assert "TypeError" in caplog.text


def test_a_request_that_the_engine_cancels_by_itself_is_asked_again(lane_with: Lanes) -> None:
    async def cancelled() -> Reply:
        raise asyncio.CancelledError

    engine = ScriptedEngine(lambda request, number: cancelled() if number == 1 else Reply(b"{}"))
    response = all_of(lane_with(engine).ask([request(1)]))["r1"]
    assert (response.succeeded, response.attempts) == (True, 2)


def test_stop_lets_what_is_in_flight_finish_and_sends_nothing_more(lane_with: Lanes) -> None:
    gate = Gate()
    engine = ScriptedEngine(lambda request, number: gate.reply())
    asking = lane_with(engine, in_flight=3).ask(requests(10))
    gate.wait_for_somebody()
    asking.stop()
    gate.open()
    assert set(all_of(asking)) == {"r1", "r2", "r3"}
    assert len(engine.asked) == 3
    assert asking.outstanding == 0


def test_stop_drops_what_waits_for_its_next_try(lane_with: Lanes) -> None:
    asked: list[Asking] = []
    sent = threading.Event()

    def answer(request: Request, number: int) -> Awaitable[Reply] | Exception:
        if request.line == 1:
            return OVERLOADED
        sent.set()
        return once(lambda: bool(asked) and asked[0].stopped)

    engine = ScriptedEngine(answer)
    asked.append(lane_with(engine, in_flight=2).ask(requests(2)))
    assert sent.wait(PATIENCE)
    asked[0].stop()
    assert set(all_of(asked[0])) == {"r2"}
    assert engine.tries["r1"] == 1


def test_abandon_cancels_what_is_in_flight_and_frees_its_places(lane_with: Lanes) -> None:
    gate = Gate()
    engine = ScriptedEngine(lambda request, number: gate.reply())
    lane = lane_with(engine, in_flight=2)
    asking = lane.ask(requests(5))
    gate.wait_for_somebody()
    engine.answer = lambda request, number: Reply(b"{}")
    other = lane.ask(requests(5, name="other"))
    asking.abandon()
    assert all_of(asking) == {}
    assert len(all_of(other)) == 5


def test_wait_says_no_when_nothing_is_new(lane_with: Lanes) -> None:
    gate = Gate()
    asking = lane_with(ScriptedEngine(lambda request, number: gate.reply())).ask([request(1)])
    gate.wait_for_somebody()
    assert not asking.wait(0)
    assert asking.outstanding == 1
    assert asking.take() == []
    gate.open()
    assert len(all_of(asking)) == 1


def test_close_gives_what_is_in_flight_its_grace_and_drops_the_rest(lane_with: Lanes) -> None:
    sent = threading.Event()

    def answer(request: Request, number: int) -> Awaitable[Reply]:
        sent.set()
        return once(lambda: lane._closing, then=2 if request.line == 1 else 1000)

    engine = ScriptedEngine(answer)
    lane = lane_with(engine, in_flight=2)
    asking = lane.ask(requests(9))
    assert sent.wait(PATIENCE)
    lane.close(grace=10)
    assert set(all_of(asking)) == {"r1"}
    assert engine.closed == 1


def test_a_closed_lane_takes_no_questions_and_closes_twice(lane_with: Lanes) -> None:
    lane = lane_with(ScriptedEngine())
    asking = lane.ask(requests(3))
    all_of(asking)
    lane.close()
    lane.close()
    asking.stop()
    asking.abandon()
    with pytest.raises(RuntimeError):
        lane.ask(requests(1))


def test_an_engine_that_cannot_start_stops_the_lane_with_its_sentence() -> None:
    engine = ScriptedEngine()
    engine.broken = FatalError("The package is missing.", code="no_package")
    lane = Lane(engine, policy=RetryPolicy(), make_loop=LeapingLoop)
    with pytest.raises(FatalError, match="package is missing"):
        lane.start()
    lane.close()
    assert engine.closed == 1


def test_health_is_the_engines(lane_with: Lanes) -> None:
    engine = ScriptedEngine()
    lane = lane_with(engine)
    lane.health()
    engine.broken = NO_REPLY
    with pytest.raises(Unreachable):
        lane.health()
