"""Who waits for a batch is told when nobody works on it, and only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from click.testing import CliRunner

import tasks.wiring
from cli.exit_codes import NotFinished
from cli.main import main
from cli.waiting import Attendance
from synthgen.batch import Batch
from synthgen.owner import current_owner
from synthgen.ports import Services
from tests.workshop import Workshop, questions

LONG = 6.0


def claim(workshop: Workshop, batch: Batch, owner: str) -> None:
    workshop.store.claim(batch.id, number=None, owner=owner, lease=1000)


def dead() -> str:
    """A process of this machine whose number nobody has."""
    return "/".join([*current_owner().split("/")[:-2], str(2**22 + 1), "1"])


def waited(workshop: Workshop, batch: Batch, *, embedded: bool = True) -> None:
    """Two looks at the batch with a long time between them."""
    attendance = Attendance(workshop.services, embedded=embedded)
    attendance.check(workshop.store.progress(batch.id))
    workshop.clock.advance(LONG)
    attendance.check(workshop.store.progress(batch.id))


def test_a_batch_that_was_stopped_is_not_waited_for(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    with pytest.raises(NotFinished, match=f"run 'synthgen run --batch {batch.id}'"):
        waited(workshop, batch)


def test_a_batch_whose_run_was_killed_is_not_waited_for(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    claim(workshop, batch, dead())
    with pytest.raises(NotFinished, match="Nobody works on batch"):
        waited(workshop, batch)


def test_a_batch_that_somebody_works_on_is_waited_for(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(2))
    claim(workshop, batch, current_owner())
    waited(workshop, batch)


@pytest.mark.parametrize(("embedded", "pool"), [(False, None), (True, "gpu")])
def test_a_batch_that_workers_elsewhere_may_take_is_waited_for(
    workshop: Workshop, embedded: bool, pool: str | None
) -> None:
    waited(workshop, workshop.submitted(questions(2), pool=pool), embedded=embedded)


def test_the_moment_between_two_shards_counts_anew_each_time(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    attendance = Attendance(workshop.services, embedded=True)
    for owner in (None, current_owner(), None):
        if owner:
            claim(workshop, batch, owner)
        else:
            workshop.store.rescue(owners=[current_owner()])
        workshop.clock.advance(LONG / 2)
        attendance.check(workshop.store.progress(batch.id))


@pytest.mark.parametrize("arguments", [("watch", "last"), ("results", "last", "--follow")])
def test_commands_that_wait_end_with_a_sentence(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    @contextmanager
    def connect(settings: object, **_: object) -> Iterator[Services]:
        yield replace(workshop.services, clock=_Leaping(workshop.clock.advance, workshop.services))

    monkeypatch.setattr(tasks.wiring, "connect", connect)
    workshop.submitted(questions(2))
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "Nobody works on batch" in done.stderr) == (1, True)


class _Leaping:
    """A clock on which much time passes between two readings."""

    def __init__(self, advance: Callable[[float], None], services: Services) -> None:
        self._advance = advance
        self._clock = services.clock
        self.now = services.clock.now

    def monotonic(self) -> float:
        self._advance(LONG)
        return self._clock.monotonic()
