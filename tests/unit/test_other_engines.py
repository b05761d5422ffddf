"""An engine goes on with what another has begun only if the user knows, and never with mocked text on one side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synthgen.batch import Batch, BatchOptions, EngineIdentity
from synthgen.control import pause
from synthgen.errors import BadInput
from synthgen.other_engines import compare_engines
from synthgen.states import BatchState
from synthgen.submit import submit
from tests.workshop import MemorySource, Workshop, jsonl, questions

MOCK = EngineIdentity("mock", "mock", model="m")
HERE = EngineIdentity("openai", "here:8000", model="m")
THERE = EngineIdentity("openai", "there:8000", model="m")


def begun_by(workshop: Workshop, *engines: EngineIdentity, **options: object) -> Batch:
    batch = workshop.submitted(questions(5), shard_requests=1, **options)
    for engine in engines:
        assert workshop.store.claim(batch.id, number=None, owner="x", lease=60, engine=engine)
    return batch


def test_who_begins_a_batch_or_goes_on_with_his_own_is_told_nothing(workshop: Workshop) -> None:
    assert compare_engines(workshop.services, begun_by(workshop), MOCK) is None
    assert compare_engines(workshop.services, begun_by(workshop, HERE), HERE) is None


@pytest.mark.parametrize(("first", "second"), [(MOCK, HERE), (HERE, MOCK)])
def test_mocked_text_and_answers_are_not_mixed(
    workshop: Workshop, first: EngineIdentity, second: EngineIdentity
) -> None:
    batch = begun_by(workshop, first)
    with pytest.raises(BadInput, match=f"go on with --engine {first.name}.*--new"):
        compare_engines(workshop.services, batch, second)


def test_another_server_goes_on_and_is_told_once(workshop: Workshop) -> None:
    batch = begun_by(workshop, HERE)
    told = compare_engines(workshop.services, batch, THERE)
    assert told == (
        f"Batch {batch.id} was begun by --engine openai at here:8000 with m; "
        "--engine openai at there:8000 with m answers the rest."
    )
    workshop.store.claim(batch.id, number=None, owner="x", lease=60, engine=THERE)
    assert compare_engines(workshop.services, batch, THERE) is None


def test_the_engines_model_is_of_interest_only_where_the_lines_name_none(workshop: Workshop) -> None:
    other = replace(HERE, model="another")
    assert compare_engines(workshop.services, begun_by(workshop, HERE), other) is None
    assert compare_engines(workshop.services, begun_by(workshop, HERE, model=None), other) is not None


def test_a_batch_that_has_ended_is_only_collected(workshop: Workshop) -> None:
    ended = workshop.run(workshop.submitted(questions(1)))
    assert ended.state is BatchState.COMPLETED
    assert compare_engines(workshop.services, ended, MOCK) is None


def test_a_batch_that_must_not_go_on_stays_as_it_was(workshop: Workshop) -> None:
    batch = begun_by(workshop)
    pause(workshop.services, batch.id)

    def refuse(found: Batch) -> None:
        raise BadInput(f"Not {found.id}.")

    source, asked = MemorySource(jsonl(questions(5))), BatchOptions(model="m", shard_requests=1)
    with pytest.raises(BadInput, match=batch.id):
        submit(workshop.services, [source], asked, name="n", look_at=refuse)
    assert workshop.store.get(batch.id).state is BatchState.PAUSED
