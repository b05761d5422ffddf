"""Leases kept alive in one statement for all, and what their batches want, brought back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest

from synthgen.batch import Counts, Directive
from synthgen.errors import ServiceUnavailable
from synthgen.keeper import Keeper
from synthgen.ports import Beat, Limits
from synthgen.states import BatchState
from tests.examples import claimed, stored_batch
from tests.fakes.batch_store import FakeBatchStore
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_engine import PATIENCE

LIMITS = Limits(lease=20.0, heartbeat=0.001)


class CountingStore(FakeBatchStore):
    """Counts heartbeats; while ``away`` is set it does not answer, while ``broken`` it answers nonsense."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.heard: list[list[int]] = []
        self.away = False
        self.broken = False
        self._beaten = threading.Condition()

    def heartbeat(self, beats: Sequence[Beat], *, lease: float) -> Mapping[int, Directive]:
        with self._beaten:
            self.heard.append([beat.token for beat in beats])
            self._beaten.notify_all()
        if self.away:
            raise ServiceUnavailable("The database does not answer.")
        if self.broken:
            raise RuntimeError("boom")
        return super().heartbeat(beats, lease=lease)

    def wait_for_beats(self, count: int) -> None:
        with self._beaten:
            enough = len(self.heard) + count
            assert self._beaten.wait_for(lambda: len(self.heard) >= enough, PATIENCE)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock)


@pytest.fixture
def keeper(store: CountingStore) -> Keeper:
    return Keeper(store, LIMITS)


def test_all_attempts_are_kept_alive_in_one_statement(store: CountingStore, clock: FakeClock, keeper: Keeper) -> None:
    batch = stored_batch(store, shards=2)
    attempts = [claimed(store, batch.id) for _ in range(2)]
    with keeper.keep(attempts[0]), keeper.keep(attempts[1]):
        clock.advance(50)
        keeper.beat()
        clock.advance(15)
        assert store.rescue() == []
    assert store.heard == [[attempt.token for attempt in attempts]]


def test_without_attempts_nobody_is_troubled(store: CountingStore, keeper: Keeper) -> None:
    attempt = claimed(store, stored_batch(store).id)
    keeper.beat()
    with keeper.keep(attempt):
        pass
    keeper.beat()
    assert store.heard == []


def test_what_an_attempt_has_finished_shows_in_the_progress(store: CountingStore, keeper: Keeper) -> None:
    batch = stored_batch(store, shards=1, requests=3)
    with keeper.keep(claimed(store, batch.id)) as held:
        held.counts = Counts(succeeded=2)
        keeper.beat()
        progress = store.progress(batch.id)
    assert (progress.counts.succeeded, progress.running, progress.pending) == (2, 1, 0)


@pytest.mark.parametrize(
    ("state", "directive"),
    [
        (BatchState.IN_PROGRESS, Directive.GO),
        (BatchState.PAUSED, Directive.PAUSE),
        (BatchState.CANCELLING, Directive.CANCEL),
        (BatchState.EXPIRED, Directive.EXPIRE),
    ],
)
def test_an_attempt_hears_what_its_batch_wants(
    store: CountingStore, keeper: Keeper, state: BatchState, directive: Directive
) -> None:
    batch = stored_batch(store)
    with keeper.keep(claimed(store, batch.id)) as held:
        if state is not BatchState.IN_PROGRESS:
            store.move(batch.id, state)
        keeper.beat()
        assert held.directive is directive


def test_an_attempt_begins_with_what_its_batch_wanted_at_the_claim(store: CountingStore, keeper: Keeper) -> None:
    batch = stored_batch(store)
    store.move(batch.id, BatchState.CANCELLING)
    with keeper.keep(claimed(store, batch.id)) as held:
        assert held.directive is Directive.CANCEL


def test_an_attempt_whose_token_is_gone_is_lost_and_the_others_are_not(store: CountingStore, keeper: Keeper) -> None:
    batch = stored_batch(store, shards=2)
    lost, other = claimed(store, batch.id, owner="gone"), claimed(store, batch.id)
    with keeper.keep(lost) as held, keeper.keep(other) as held_other:
        store.rescue(owners=["gone"])
        claimed(store, batch.id)
        keeper.beat()
        assert (held.directive, held_other.directive) == (Directive.LOST, Directive.GO)


def test_a_store_that_does_not_even_name_a_token_has_lost_it(
    store: CountingStore, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keeper.keep(claimed(store, stored_batch(store).id)) as held:
        monkeypatch.setattr(store, "heartbeat", lambda beats, lease: {})
        keeper.beat()
        assert held.directive is Directive.LOST


@pytest.mark.parametrize("trouble", ["away", "broken"])
def test_the_thread_outlives_a_store_in_trouble_and_goes_on_when_it_is_back(
    store: CountingStore, keeper: Keeper, trouble: str
) -> None:
    batch = stored_batch(store)
    setattr(store, trouble, True)
    keeper.start()
    try:
        with keeper.keep(claimed(store, batch.id)) as held:
            store.wait_for_beats(3)
            assert held.directive is Directive.GO
            setattr(store, trouble, False)
            store.move(batch.id, BatchState.PAUSED)
            store.wait_for_beats(3)
            assert held.directive is Directive.PAUSE
    finally:
        keeper.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "synthgen-keeper"]


def test_stopping_a_keeper_that_never_started_is_no_trouble(keeper: Keeper) -> None:
    keeper.stop()
