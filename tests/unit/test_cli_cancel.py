"""A batch whose input cannot be read ends only when a person says that it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

import tasks.wiring
from cli.main import main
from synthgen.ports import Services
from synthgen.states import BatchState
from tests.workshop import Workshop, questions


@pytest.fixture(autouse=True)
def _in_memory(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connect(settings: object, **_: object) -> Iterator[Services]:
        yield workshop.services

    monkeypatch.setattr(tasks.wiring, "connect", connect)


def test_what_cannot_be_read_is_given_up_only_when_it_is_said(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    workshop.objects.delete([batch.input_key])
    workshop.run(batch)
    refused = CliRunner().invoke(main, ["cancel", batch.id])
    assert refused.exit_code == 1
    assert f"synthgen cancel --give-up {batch.id}" in " ".join(refused.stderr.split())
    assert workshop.store.get(batch.id).state is BatchState.CANCELLING
    assert "is cancelled" in CliRunner().invoke(main, ["cancel", "--give-up", batch.id]).stderr
    assert workshop.store.get(batch.id).state is BatchState.CANCELLED
