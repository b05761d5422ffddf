"""Which pool a batch belongs to, and the sentences for one that waits."""

from __future__ import annotations

from typing import Any

import pytest

from synthgen.workers import (
    ANY_MODEL,
    WorkerState,
    WorkerStatus,
    nobody_serves,
    nobody_works_in,
    pool_for,
    pools_of,
    still_starting,
)
from tests.examples import some_worker

S = WorkerState


def worker(pool: str, *models: str, **changes: Any) -> WorkerStatus:
    return some_worker(f"{pool}-{models}-{changes}", pool=pool, models=models, **changes)


def test_the_pool_that_names_the_model_goes_before_one_that_serves_any() -> None:
    workers = [worker("a-any", ANY_MODEL), worker("named", "m", in_flight=100)]
    assert pool_for("m", workers) == "named"
    assert pool_for("other", workers) == "a-any"


def test_a_model_that_nobody_serves_has_no_pool() -> None:
    assert pool_for("m", [worker("a", "n"), worker("b")]) is None
    assert pool_for("m", []) is None


def test_a_batch_without_a_model_goes_to_whoever_serves_something() -> None:
    assert pool_for(None, [worker("nothing-yet"), worker("a", "n")]) == "a"
    assert pool_for(None, [worker("a", ANY_MODEL)]) == "a"
    assert pool_for(None, [worker("nothing-yet")]) is None


def test_of_several_pools_the_one_with_the_least_in_flight_is_taken() -> None:
    assert pool_for("m", [worker("a", "m", in_flight=9), worker("b", "m", in_flight=3)]) == "b"


def test_a_pool_that_serves_now_goes_before_one_that_is_still_starting() -> None:
    workers = [worker("a", "m", state=S.WARMING), worker("b", "m", state=S.BUSY, in_flight=200)]
    assert pool_for("m", workers) == "b"


@pytest.mark.parametrize("state", [S.STARTING, S.WARMING, S.IDLE, S.BUSY, S.ASLEEP])
def test_a_worker_that_serves_or_will_draws_batches(state: WorkerState) -> None:
    assert pool_for("m", [worker("a", "m", state=state)]) == "a"


@pytest.mark.parametrize("state", [S.DRAINING, S.FAILED])
def test_a_worker_that_ends_draws_none_even_where_its_pool_lives_on(state: WorkerState) -> None:
    assert pool_for("m", [worker("a", "m", state=state), worker("a", "n")]) is None


def test_pools_are_their_workers_together() -> None:
    idle = worker("a", "m", in_flight=1, requests_per_second=1.5, tokens_per_second=10.0)
    warming = worker("a", "n", state=S.WARMING, in_flight=2, requests_per_second=2.0, tokens_per_second=20.004)
    other, pool = pools_of([worker("b", "x"), idle, warming])[::-1]
    assert other.name == "b"
    assert pool.as_dict() == {
        "name": "a",
        "models": ["m", "n"],
        "workers": 2,
        "serving": 1,
        "states": {str(state): int(state in (S.IDLE, S.WARMING)) for state in S},
        "in_flight": 3,
        "capacity": 512,
        "requests_per_second": 3.5,
        "tokens_per_second": 30.0,
    }


def test_a_worker_tells_programs_all_it_knows() -> None:
    status = worker("a", "m", reason="why", requests_per_second=1.234, tokens_per_second=9.876)
    told = status.as_dict()
    assert set(told) == {*WorkerStatus.__slots__}
    assert (told["models"], told["state"], told["requests_per_second"], told["reason"]) == (["m"], "idle", 1.23, "why")


def test_the_sentence_for_a_model_that_nobody_serves_names_the_pools_that_live() -> None:
    workers = [worker("a", "m"), worker("b", "n"), worker("gone", "x", state=S.FAILED)]
    assert nobody_serves("x", workers) == "No worker serves 'x'; 2 pools live: a, b."
    assert nobody_serves("x", workers[:1]) == "No worker serves 'x'; 1 pool live: a."
    assert nobody_serves(None, []) == "No worker serves a batch that names no model; no pool is live."


def test_the_sentence_for_a_pool_without_workers() -> None:
    workers = [worker("a", "m"), worker("b", "n", state=S.DRAINING)]
    assert nobody_works_in("a", workers) is None
    assert nobody_works_in("b", workers) == nobody_works_in("b", []) == "Pool 'b' has no live worker."


def test_the_sentence_for_a_pool_that_is_still_starting() -> None:
    starting = worker("a", "m", state=S.STARTING)
    warming = worker("a", "m", state=S.WARMING)
    assert still_starting("a", [warming]) == "Pool 'a' is getting ready: 1 worker is starting. The batch waits."
    assert still_starting("a", [starting, warming]) == (
        "Pool 'a' is getting ready: 2 workers are starting. The batch waits."
    )
    assert still_starting("a", [warming, worker("a", "m")]) is None
    assert still_starting("b", [warming]) is None
