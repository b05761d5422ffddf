"""Where a batch goes that names no pool, what it waits for, and that it goes on when somebody comes."""

from __future__ import annotations

import pytest

from synthgen.batch import Batch
from synthgen.control import cancel, pause, resume
from synthgen.routing import route, waiting_for
from synthgen.states import ShardState
from synthgen.submit import Submission
from synthgen.upkeep import run_upkeep
from synthgen.workers import ANY_MODEL, AUTO, WorkerState
from tests.examples import some_worker
from tests.workshop import Workshop, questions

EVERY = 5.0


def submitted(workshop: Workshop, **options: object) -> Batch:
    """As it is after the submission."""
    batch = workshop.submitted(questions(2), **{"pool": AUTO, "model": "m", **options})
    return workshop.store.get(batch.id)


def upkeep(workshop: Workshop) -> None:
    workshop.clock.advance(EVERY)
    assert run_upkeep(workshop.services, every=EVERY)


def test_a_batch_goes_to_the_pool_that_serves_its_model(workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", pool="any", models=(ANY_MODEL,)))
    workshop.services.registry.beat(some_worker("2", pool="gpu", models=("m",)))
    batch = submitted(workshop)
    assert batch.options.pool == "gpu"
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0)]
    assert waiting_for(workshop.services, batch) is None


def test_a_batch_that_nobody_serves_queues_nothing_says_so_and_starts_when_a_worker_comes(workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", pool="other", models=("n",)))
    batch = submitted(workshop)
    assert batch.options.pool == AUTO
    assert workshop.shard_states(batch) == [ShardState.PENDING]
    assert waiting_for(workshop.services, batch) == (
        "No worker serves 'm'; 1 pool live: other. The batch waits; to start one: synthgen worker --model m --engine …"
    )
    upkeep(workshop)
    assert workshop.dispatcher.sent == []
    workshop.services.registry.beat(some_worker("2", pool="gpu", models=("m",)))
    upkeep(workshop)
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0)]
    assert waiting_for(workshop.services, workshop.store.get(batch.id)) is None


def test_a_worker_that_fell_silent_draws_no_batch(workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", pool="gpu", models=("m",)))
    workshop.clock.advance(workshop.limits.lease + 1)
    assert submitted(workshop).options.pool == AUTO


def test_a_choice_stands_when_another_pool_comes_and_its_own_goes(workshop: Workshop) -> None:
    registry = workshop.services.registry
    registry.beat(some_worker("1", pool="gpu", models=("m",)))
    batch = submitted(workshop)
    registry.leave("1")
    registry.beat(some_worker("2", pool="late", models=("m",)))
    upkeep(workshop)
    after = workshop.store.get(batch.id)
    assert after.options.pool == "gpu"
    assert waiting_for(workshop.services, after) == (
        "Pool 'gpu' has no live worker. The batch waits; to start one: synthgen worker --pool gpu --engine …"
    )


def test_a_pool_that_is_named_gets_its_work_queued_whoever_lives(workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", pool="gpu", models=("m",)))
    batch = submitted(workshop, pool="none-yet")
    assert workshop.dispatcher.sent == [("none-yet", batch.id, 0)]
    assert (waiting_for(workshop.services, batch) or "").startswith("Pool 'none-yet' has no live worker.")


def test_a_batch_of_a_pool_that_warms_up_waits_without_being_told_to_start_another(workshop: Workshop) -> None:
    workshop.services.registry.beat(some_worker("1", pool="gpu", state=WorkerState.WARMING))
    batch = submitted(workshop, pool="gpu")
    assert waiting_for(workshop.services, batch) == (
        "Pool 'gpu' is getting ready: 1 worker is starting. The batch waits."
    )


def test_a_batch_of_synthgen_run_waits_for_no_worker(workshop: Workshop) -> None:
    batch = submitted(workshop, pool=None)
    assert route(workshop.services, batch) is None
    assert waiting_for(workshop.services, batch) is None
    assert workshop.dispatcher.sent == []


def test_a_batch_that_is_paused_or_has_ended_waits_for_no_worker(workshop: Workshop) -> None:
    batch = submitted(workshop)
    assert waiting_for(workshop.services, pause(workshop.services, batch.id)) is None
    assert waiting_for(workshop.services, cancel(workshop.services, batch.id)) is None


def test_a_paused_batch_finds_its_pool_when_it_is_resumed(workshop: Workshop) -> None:
    batch = submitted(workshop)
    pause(workshop.services, batch.id)
    workshop.services.registry.beat(some_worker("1", pool="gpu", models=("m",)))
    upkeep(workshop)
    assert workshop.store.get(batch.id).options.pool == AUTO
    resume(workshop.services, batch.id)
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0)]


def test_the_first_lines_model_routes_a_batch_that_is_given_none(workshop: Workshop) -> None:
    rows = [{"prompt": "a", "model": "first"}, {"prompt": "b", "model": "second"}]
    assert workshop.submitted(rows, model=None).options.routed_by == "first"
    assert workshop.submitted(rows, model="given").options.routed_by == "given"
    assert workshop.submitted(questions(1), model=None).options.routed_by is None


@pytest.mark.parametrize("assigned", [True, False])
def test_the_same_input_attaches_before_and_after_its_pool_is_known(workshop: Workshop, assigned: bool) -> None:
    if assigned:
        workshop.services.registry.beat(some_worker("1", pool="gpu", models=("m",)))
    first = submitted(workshop)
    again: Submission = workshop.submit(questions(2), pool=AUTO)
    assert again.attached
    assert again.batch.id == first.id
    assert not workshop.submit(questions(2), pool="gpu").attached
