"""The embedded worker: threads of one process, and several processes, on one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from synthgen.batch import Batch
from synthgen.control import pause
from synthgen.errors import EngineGone, ServiceUnavailable, SynthgenError
from synthgen.owner import current_owner
from synthgen.ports import ObjectInfo
from synthgen.request import Request
from synthgen.response import Reply
from synthgen.sharding import input_key
from synthgen.states import BatchState, ShardState
from synthgen.work import work_on
from tests.fakes.scripted_engine import PATIENCE, Gate, ScriptedEngine
from tests.workshop import WRONG_KEY, Background, Workshop, echo, failing, gated, ids, questions

Make = Callable[..., Workshop]


def work(workshop: Workshop, batch: Batch, *, shards: int = 2, worker: Any = None) -> Batch:
    return work_on(workshop.services, worker or workshop.worker, batch.id, shards=shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_batch_is_worked_to_its_end(workshop: Workshop, shards: int) -> None:
    batch = workshop.submitted(questions(20), shard_requests=2)
    assert work(workshop, batch, shards=shards).state is BatchState.COMPLETED
    assert ids(workshop.results(batch)) == [f"line-{n}" for n in range(1, 21)]
    assert len(workshop.asked) == 20


def test_several_workers_share_the_shards_out_among_them(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(40), shard_requests=2)
    other_engine = ScriptedEngine(echo)
    other = workshop.another_worker(other_engine)
    beside = Background(lambda: work(workshop, batch, worker=other))
    work(workshop, batch)
    assert beside.join().state is BatchState.COMPLETED
    assert len(workshop.asked) + len(other_engine.asked) == 40
    assert len(workshop.results(batch)) == 40


def test_an_ended_batch_is_just_given_back(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    ended = workshop.run(batch)
    assert work(workshop, batch) == ended


def test_a_broken_engine_pauses_the_batch_and_the_work_returns(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-3": WRONG_KEY}))
    batch = workshop.submitted(questions(6), shard_requests=2)
    paused = work(workshop, batch)
    assert (paused.state, paused.reason) == (BatchState.PAUSED, WRONG_KEY.message)


def test_an_engine_that_is_gone_is_told(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-3": EngineGone("The server died.", code="engine_gone")}))
    batch = workshop.submitted(questions(4), shard_requests=2)
    with pytest.raises(EngineGone, match="The server died"):
        work(workshop, batch)
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert ShardState.RUNNING not in workshop.shard_states(batch)


def test_a_paused_batch_is_not_begun(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    pause(workshop.services, batch.id)
    assert work(workshop, batch).state is BatchState.PAUSED
    assert workshop.asked == []


def test_a_worker_told_to_stop_gives_back_what_it_holds(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-1"), in_flight=1)
    batch = workshop.submitted(questions(4), shard_requests=2)
    working = Background(lambda: work(workshop, batch, shards=1))
    gate.wait_for_somebody()
    workshop.worker.stopping.set()
    workshop.wait_until_stopped()
    gate.open()
    assert working.join().state is BatchState.IN_PROGRESS
    assert workshop.shard_states(batch) == [ShardState.PENDING] * 2
    assert workshop.asked == ["line-1"]


def test_what_a_killed_run_of_this_machine_held_is_taken_over_at_once(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    place = current_owner().rsplit("/", 2)[0]
    workshop.store.claim(batch.id, number=0, owner=f"{place}/{2**31 - 1}/1.00", lease=3600)
    assert work(workshop, batch).state is BatchState.COMPLETED


def test_what_a_crashed_sealer_left_is_finished(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    move = workshop.store.move

    def dies(*_: object, **__: object) -> Batch:
        raise ServiceUnavailable("The database does not answer.")

    workshop.store.move = dies  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        work(workshop, batch, shards=1)
    workshop.store.move = move  # type: ignore[method-assign]
    workshop.worker.stopping.clear()
    assert work(workshop, batch).state is BatchState.COMPLETED


def test_the_first_error_stops_the_other_threads_and_is_raised(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-1"), in_flight=2)
    batch = workshop.submitted(questions(6), shard_requests=2)
    put = workshop.objects.put

    def away(key: str, data: bytes) -> None:
        raise ServiceUnavailable("The object store does not answer.")

    workshop.objects.put = away  # type: ignore[method-assign]
    working = Background(lambda: work(workshop, batch, shards=2))
    gate.wait_for_somebody()
    workshop.wait_until_stopped()
    gate.open()
    with pytest.raises(ServiceUnavailable):
        working.join()
    assert workshop.shard_states(batch) == [ShardState.PENDING] * 3
    workshop.objects.put = put  # type: ignore[method-assign]


def test_a_batch_past_its_window_is_ended_and_not_waited_for(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3), shard_requests=1, completion_window=60)
    workshop.clock.advance(61)
    assert work(workshop, batch).state is BatchState.EXPIRED
    assert workshop.asked == []


def test_a_cancelled_batch_that_cannot_be_closed_is_told(workshop_with: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = workshop_with(failing({"line-1": WRONG_KEY}))
    batch = workshop.submitted(questions(2))
    work(workshop, batch)
    workshop.store.move(batch.id, BatchState.CANCELLING)
    monkeypatch.setattr(workshop.objects, "put", bug)
    with pytest.raises(SynthgenError, match="cannot end"):
        Background(lambda: work(workshop, batch)).join()


def test_what_killed_submits_left_is_swept_beside_the_work(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan, swept = left_by_a_killed_submit(workshop), threading.Event()
    delete = workshop.objects.delete

    def noted(keys: Iterable[str]) -> None:
        delete(keys)
        swept.set()

    def answered(request: Request, number: int) -> Reply:
        assert swept.wait(PATIENCE)
        return echo(request, number)

    monkeypatch.setattr(workshop.objects, "delete", noted)
    workshop.engine.answer = answered
    work(workshop, workshop.submitted(questions(2)))
    assert orphan not in workshop.objects.objects


def test_a_sweep_in_progress_is_not_waited_for(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, done = threading.Event(), threading.Event()

    def endless(prefix: str) -> Iterator[ObjectInfo]:
        listed.set()
        done.wait()
        yield from ()

    def answered(request: Request, number: int) -> Reply:
        assert listed.wait(PATIENCE)
        return echo(request, number)

    monkeypatch.setattr("synthgen.work._MOMENT", 0)
    monkeypatch.setattr(workshop.objects, "list", endless)
    workshop.engine.answer = answered
    try:
        assert Background(lambda: work(workshop, workshop.submitted(questions(2)))).join().state is BatchState.COMPLETED
    finally:
        done.set()


def test_runs_that_follow_one_another_do_not_each_sweep(workshop: Workshop) -> None:
    work(workshop, workshop.submitted(questions(2)))
    orphan = left_by_a_killed_submit(workshop)
    work(workshop, workshop.submitted(questions(2)))
    assert orphan in workshop.objects.objects


def test_a_sweep_that_fails_is_no_failure_of_the_work(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop.objects, "sweep_uploads", bug)
    assert work(workshop, workshop.submitted(questions(2))).state is BatchState.COMPLETED


def test_who_is_told_to_stop_does_not_sweep(workshop: Workshop) -> None:
    orphan = left_by_a_killed_submit(workshop)
    workshop.worker.stopping.set()
    work(workshop, workshop.submitted(questions(2)))
    assert orphan in workshop.objects.objects


def left_by_a_killed_submit(workshop: Workshop) -> str:
    """An object that is old enough to be swept."""
    key = input_key("batch_killed_at_submit")
    workshop.objects.put(key, b"x")
    workshop.objects.modified[key] = workshop.clock.now() - timedelta(seconds=workshop.limits.orphan_age)
    return key


def bug(*_: object, **__: object) -> None:
    raise RuntimeError("boom")
