"""Commands that do the same to several batches."""

from __future__ import annotations

from typing import Any

import pytest

from cli.each import for_each
from synthgen import control
from synthgen.batch import Batch
from synthgen.errors import ServiceUnavailable, SynthgenError
from synthgen.ports import Services
from synthgen.states import BatchState
from tests.workshop import Workshop, questions


def cancel(services: Services, batch: Batch) -> str:
    return f"{control.cancel(services, batch.id).state}"


def three_batches(workshop: Workshop) -> list[Batch]:
    return [workshop.submitted(questions(2, start=start)) for start in (1, 11, 21)]


def test_one_batch_that_cannot_be_changed_does_not_keep_the_others_from_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, move = three_batches(workshop), workshop.store.move

    def broken(batch_id: str, to: BatchState, **options: Any) -> Batch:
        if batch_id == batches[0].id:
            raise SynthgenError("It cannot end.")
        return move(batch_id, to, **options)

    monkeypatch.setattr(workshop.store, "move", broken)
    with pytest.raises(SynthgenError, match="It cannot end"):
        for_each(workshop.services, [batch.id for batch in batches], cancel)
    states = [workshop.store.get(batch.id).state for batch in batches]
    assert states == [BatchState.IN_PROGRESS, BatchState.CANCELLED, BatchState.CANCELLED]


def test_without_a_database_no_further_batch_is_tried_and_what_was_wrong_before_is_said(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, tried = three_batches(workshop), []

    def away(batch_id: str, *_: object, **__: object) -> Batch:
        tried.append(batch_id)
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(workshop.store, "move", away)
    with pytest.raises(ServiceUnavailable):
        for_each(workshop.services, ["nobody", *(batch.id for batch in batches)], cancel)
    assert tried == [batches[0].id]
    assert "Error: 'nobody'" in capsys.readouterr().err
