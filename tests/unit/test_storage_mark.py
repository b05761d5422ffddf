"""Two databases and one storage: what one does not know may be the other's, and nobody removes that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from synthgen.batch import Batch
from synthgen.ports import Services
from synthgen.run_shard import run_shard
from synthgen.sharding import input_key
from synthgen.storage_mark import MARK, is_ours
from synthgen.upkeep import sweep
from tests.fakes.batch_store import FakeBatchStore
from tests.workshop import Workshop, questions

ELSEWHERE = ("batch_killed", "batch_waiting")


def finished(workshop: Workshop) -> Batch:
    batch = workshop.submitted(questions(2))
    workshop.run(batch)
    return batch


def with_another_database(workshop: Workshop) -> Services:
    """The same storage as another database finds it, long after everything there was written."""
    later = datetime.fromtimestamp(0, UTC)
    workshop.objects.modified = dict.fromkeys(workshop.objects.modified, later)
    return replace(workshop.services, store=FakeBatchStore(workshop.clock))


def without_mark(workshop: Workshop) -> dict[str, bytes]:
    return {key: data for key, data in workshop.objects.objects.items() if key != MARK}


def submit_to(services: Services, workshop: Workshop) -> None:
    """A batch of that database is submitted to the storage."""
    workshop.services = replace(services)
    workshop.submitted(questions(1, start=50))


@pytest.mark.parametrize("has_swept", [True, False])
@pytest.mark.parametrize("has_batches", [True, False])
def test_another_databases_results_survive_a_sweep(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, *, has_swept: bool, has_batches: bool
) -> None:
    finished(workshop)
    if has_swept:
        sweep(workshop.services)
    another = with_another_database(workshop)
    if has_batches:
        submit_to(another, workshop)
    before = dict(workshop.objects.objects)
    workshop.objects.unfinished[1] = ("batches/x/input.jsonl", datetime.fromtimestamp(0, UTC))
    sweep(another)
    assert workshop.objects.objects == before
    assert workshop.objects.unfinished
    (said,) = [record.message for record in caplog.records if "another database" in record.message]
    assert f"write {another.store.identity()} into memory:{MARK}" in said


def test_inputs_of_another_database_survive_where_it_has_the_storage_to_itself(workshop: Workshop) -> None:
    workshop.submitted(questions(2))
    another = with_another_database(workshop)
    before = dict(workshop.objects.objects)
    sweep(another)
    assert workshop.objects.objects == before


def test_an_empty_storage_is_marked_by_the_first_sweep(workshop: Workshop) -> None:
    assert is_ours(workshop.services)
    assert workshop.objects.get(MARK).decode().strip() == workshop.store.identity()
    assert not is_ours(with_another_database(workshop))
    assert is_ours(workshop.services)


def test_a_storage_from_before_the_mark_is_marked_where_all_that_was_begun_is_ours(workshop: Workshop) -> None:
    finished(workshop)
    for batch_id in ELSEWHERE:
        workshop.objects.put(input_key(batch_id), b"left by a submit that was killed")
    assert is_ours(workshop.services)


def test_what_a_person_has_marked_is_swept(workshop: Workshop) -> None:
    finished(workshop)
    another = with_another_database(workshop)
    workshop.objects.put(MARK, f"  {another.store.identity()}\n".encode())
    sweep(another)
    assert without_mark(workshop) == {}


def test_a_running_batch_marks_the_storage_by_its_input(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id)
    sweep(workshop.services)
    assert MARK in workshop.objects.objects
