"""What every batch store keeps about shards: each claimed by one, sealed once, counted at every moment, never lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from synthgen.batch import COUNT_FIELDS, Attempt, BatchOptions, Counts, Directive, EngineIdentity, Progress
from synthgen.errors import LostLease
from synthgen.ports import BatchStore, Beat
from synthgen.request import Rejected
from synthgen.states import BatchState, ShardState
from tests.contract.conftest import Later
from tests.examples import (
    claimed,
    counts_of,
    result_of,
    rows_of,
    sealed,
    some_batch,
    some_shards,
    stored_batch,
)


def states_of(store: BatchStore, batch_id: str) -> list[ShardState]:
    return [status.state for status in store.shards(batch_id)]


def seal(store: BatchStore, attempt: Attempt, **failed: str) -> None:
    rows = rows_of(attempt.shard, failed={int(line[1:]): code for line, code in failed.items()})
    store.seal(attempt, result_of(attempt, rows), rows)


def end(store: BatchStore, batch_id: str, *states: BatchState) -> None:
    for state in states:
        store.move(batch_id, state)


def whole(progress: Progress) -> Progress:
    """``progress``, when its numbers add up."""
    assert progress.pending >= 0
    assert progress.running >= 0
    assert progress.counts.finished + progress.running + progress.pending == progress.batch.total
    assert progress.counts.cached <= progress.counts.succeeded
    assert sum(progress.shards.values()) == progress.batch.shards
    return progress


def test_the_window_queues_the_lowest_until_spare_and_running_are_queued(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=10)
    assert batch_store.queue_window(batch.id, spare=2) == [0, 1]
    assert batch_store.queue_window(batch.id, spare=2) == []
    claimed(batch_store, batch.id, number=0)
    assert batch_store.queue_window(batch.id, spare=2) == [2, 3]
    claimed(batch_store, batch.id, number=1)
    claimed(batch_store, batch.id, number=2)
    assert batch_store.queue_window(batch.id, spare=2) == [4, 5, 6, 7]
    assert batch_store.queue_window(batch.id, spare=0) == []
    assert batch_store.queue_window(batch.id, spare=100) == [8, 9]
    assert batch_store.queue_window("batch_nobody", spare=2) == []


@pytest.mark.parametrize("state", [BatchState.PAUSED, BatchState.CANCELLING, BatchState.EXPIRED])
def test_nothing_is_queued_of_a_batch_that_is_not_in_progress(batch_store: BatchStore, state: BatchState) -> None:
    batch = stored_batch(batch_store)
    batch_store.move(batch.id, state)
    assert batch_store.queue_window(batch.id, spare=8) == []


def test_what_was_queued_before_a_pause_is_queued_anew_after_it(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=4)
    batch_store.queue_window(batch.id, spare=3)
    claimed(batch_store, batch.id, number=0)
    batch_store.move(batch.id, BatchState.PAUSED)
    assert states_of(batch_store, batch.id) == [ShardState.RUNNING, *[ShardState.PENDING] * 3]
    batch_store.move(batch.id, BatchState.IN_PROGRESS)
    assert batch_store.queue_window(batch.id, spare=1) == [1, 2]


def test_callers_at_the_same_moment_do_not_overfill_the_window(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=100)
    with ThreadPoolExecutor(4) as pool:
        queued = list(pool.map(lambda _: batch_store.queue_window(batch.id, spare=8), range(12)))
    assert sorted(number for numbers in queued for number in numbers) == list(range(8))


def test_a_claim_takes_the_shard_that_is_named_or_the_lowest_free_one(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=3)
    batch_store.queue_window(batch.id, spare=1)
    assert claimed(batch_store, batch.id, number=1).shard.number == 1
    assert claimed(batch_store, batch.id).shard.number == 0
    assert claimed(batch_store, batch.id).shard.number == 2
    assert batch_store.claim(batch.id, number=None, owner="w", lease=60) is None


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_shard_that_is_running_done_or_unknown_cannot_be_claimed(batch_store: BatchStore, number: int) -> None:
    batch = stored_batch(batch_store)
    sealed(batch_store, batch.id)
    claimed(batch_store, batch.id)
    assert batch_store.claim(batch.id, number=number, owner="w", lease=60) is None
    assert batch_store.claim("batch_nobody", number=None, owner="w", lease=60) is None


def test_an_attempt_knows_what_it_needs(batch_store: BatchStore) -> None:
    parts = [replace(part, lines=4, first_line=4 * part.number + 1) for part in some_shards(2)]
    lines = [Rejected(line, "invalid_request", "no") for line in (4, 5)]
    batch = batch_store.create(some_batch(parts, rejected=2), parts, lines)
    first, second = claimed(batch_store, batch.id), claimed(batch_store, batch.id)
    assert (first.shard, second.shard) == (parts[0], parts[1])
    assert first.rejected == frozenset({4})
    assert second.rejected == frozenset({5})
    assert (first.number, first.previous_key, first.directive) == (1, None, Directive.GO)
    assert second.token > first.token
    assert first.batch == replace(batch, started_at=first.batch.started_at)
    assert first.batch.started_at is not None
    assert second.batch.started_at == first.batch.started_at == batch_store.get(batch.id).started_at


def test_many_claimants_get_each_shard_once(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=60)

    def claim_all(owner: str) -> list[Attempt | None]:
        return list(iter(lambda: batch_store.claim(batch.id, number=None, owner=owner, lease=60), None))

    with ThreadPoolExecutor(4) as pool:
        attempts = [attempt for each in pool.map(claim_all, "abcd") for attempt in each if attempt]
    assert sorted(attempt.shard.number for attempt in attempts) == list(range(60))
    assert len({attempt.token for attempt in attempts}) == 60


@pytest.mark.parametrize(
    ("states", "directive"),
    [
        ((), Directive.GO),
        ((BatchState.CANCELLING,), Directive.CANCEL),
        ((BatchState.PAUSED,), None),
        ((BatchState.EXPIRED,), None),
        ((BatchState.FINALIZING,), None),
        ((BatchState.CANCELLING, BatchState.CANCELLED), None),
    ],
)
def test_what_a_batch_wants_at_the_claim(
    batch_store: BatchStore, states: tuple[BatchState, ...], directive: Directive | None
) -> None:
    batch = stored_batch(batch_store)
    end(batch_store, batch.id, *states)
    attempt = batch_store.claim(batch.id, number=None, owner="w", lease=60)
    assert (attempt and attempt.directive) == directive


def test_after_its_window_a_batch_only_wants_its_shards_closed(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store, window=100)
    before = claimed(batch_store, batch.id)
    later(101)
    assert claimed(batch_store, batch.id).directive is Directive.EXPIRE
    assert batch_store.heartbeat([Beat(before.token, Counts())], lease=60) == {before.token: Directive.EXPIRE}


def test_the_engine_stays_with_the_shard_until_another_claims_it(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=1)
    mock = EngineIdentity("mock", "mock", model="m")
    other = EngineIdentity("openai", "api.example.com", revision="2")
    for given, kept in ((None, None), (mock, mock), (None, mock), (other, other), (None, other)):
        attempt = batch_store.claim(batch.id, number=0, owner="w", lease=60, engine=given)
        assert attempt is not None
        assert attempt.engine == kept
        batch_store.release(attempt)


def test_a_heartbeat_tells_each_attempt_what_its_batch_wants(batch_store: BatchStore) -> None:
    wanted = {}
    for state, directive in (
        (None, Directive.GO),
        (BatchState.PAUSED, Directive.PAUSE),
        (BatchState.CANCELLING, Directive.CANCEL),
        (BatchState.EXPIRED, Directive.EXPIRE),
    ):
        batch = stored_batch(batch_store)
        wanted[claimed(batch_store, batch.id).token] = directive
        if state is not None:
            batch_store.move(batch.id, state)
    wanted[max(wanted) + 1_000] = Directive.LOST
    assert batch_store.heartbeat([Beat(token, Counts()) for token in wanted], lease=60) == wanted
    assert batch_store.heartbeat([], lease=60) == {}


def test_a_heartbeat_keeps_the_lease_and_counts_what_is_finished(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    later(50)
    counts = Counts(1, 1, 1, 10, 20, 30, 40, 0.5, 0.25, 0, 1)
    batch_store.heartbeat([Beat(attempt.token, counts)], lease=60)
    later(50)
    assert batch_store.rescue() == []
    progress = whole(batch_store.progress(batch.id))
    assert (progress.counts, progress.running, progress.pending) == (counts, 1, 3)
    later(11)
    assert batch_store.rescue() == [batch.id]


def test_a_sealed_shard_has_its_rows_its_result_and_its_counts(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    rows = rows_of(attempt.shard, failed={2: "boom"}, cached=False)
    rows[2] = rows[2]._replace(cached=True, cost=None)
    result = replace(result_of(attempt, rows), never_ran=1)
    batch_store.seal(attempt, result, iter(rows))
    status = next(batch_store.shards(batch.id))
    assert (status.state, status.attempts, status.result) == (ShardState.DONE, 1, result)
    assert [batch_store.find_request(batch.id, line=line).row for line in (1, 2, 3)] == rows
    progress = whole(batch_store.progress(batch.id))
    assert (progress.counts, progress.running, progress.pending) == (counts_of(rows), 0, 3)
    assert batch_store.owners() == []


def test_sealing_again_with_the_same_token_is_harmless(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    attempt = sealed(batch_store, batch.id)
    before = batch_store.progress(batch.id)
    seal(batch_store, attempt)
    assert batch_store.progress(batch.id) == before


@pytest.mark.parametrize("again", ["waits", "runs"])
def test_a_seal_whose_reply_came_late_still_stands_while_a_retry_has_the_shard(
    batch_store: BatchStore, again: str
) -> None:
    batch = stored_batch(batch_store, shards=1)
    attempt = claimed(batch_store, batch.id)
    seal(batch_store, attempt, _1="boom")
    end(batch_store, batch.id, BatchState.FINALIZING, BatchState.COMPLETED)
    assert batch_store.reset_failed(batch.id, None) == 1
    second = claimed(batch_store, batch.id) if again == "runs" else None
    before = list(batch_store.shards(batch.id)), batch_store.progress(batch.id)
    seal(batch_store, attempt, _1="boom")
    assert (list(batch_store.shards(batch.id)), batch_store.progress(batch.id)) == before
    if second is not None:
        seal(batch_store, second)
        with pytest.raises(LostLease):
            seal(batch_store, attempt, _1="boom")


def test_a_zombie_cannot_seal_what_another_attempt_holds_or_has_sealed(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store, shards=1)
    zombie = claimed(batch_store, batch.id)
    later(61)
    batch_store.rescue()
    with pytest.raises(LostLease):
        seal(batch_store, zombie)
    attempt = claimed(batch_store, batch.id)
    assert (attempt.number, attempt.token > zombie.token) == (2, True)
    with pytest.raises(LostLease):
        seal(batch_store, zombie)
    batch_store.release(zombie)
    seal(batch_store, attempt, _1="boom")
    with pytest.raises(LostLease):
        seal(batch_store, zombie)
    assert batch_store.progress(batch.id).counts.failed == 1
    assert batch_store.heartbeat([Beat(zombie.token, Counts())], lease=60) == {zombie.token: Directive.LOST}


def test_a_lease_that_ran_out_still_counts_until_somebody_rescues(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    later(100)
    seal(batch_store, attempt)
    assert states_of(batch_store, batch.id) == [ShardState.DONE, ShardState.PENDING]


def test_sealing_a_shard_of_a_removed_batch_is_a_lost_lease(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=1)
    attempt = claimed(batch_store, batch.id)
    end(batch_store, batch.id, BatchState.CANCELLING, BatchState.CANCELLED)
    batch_store.delete(batch.id)
    with pytest.raises(LostLease):
        seal(batch_store, attempt)


@pytest.mark.parametrize("wrong", ["rows", "counts", "both"])
def test_a_shard_is_not_sealed_unless_each_request_has_its_answer(batch_store: BatchStore, wrong: str) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    rows = rows_of(attempt.shard)
    result = result_of(attempt, rows if wrong == "rows" else rows[:2])
    with pytest.raises(ValueError, match="shard 0"):
        batch_store.seal(attempt, result, rows if wrong == "counts" else rows[:2])
    assert states_of(batch_store, batch.id) == [ShardState.RUNNING, ShardState.PENDING]
    assert batch_store.progress(batch.id).counts == Counts()


def test_a_released_shard_is_free_again_and_no_longer_counted(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    batch_store.heartbeat([Beat(attempt.token, Counts(succeeded=2))], lease=60)
    batch_store.release(attempt)
    batch_store.release(attempt)
    progress = whole(batch_store.progress(batch.id))
    assert (progress.counts, progress.pending) == (Counts(), 6)
    assert claimed(batch_store, batch.id).number == 2


def test_rescue_takes_silent_shards_and_those_of_given_owners(batch_store: BatchStore, later: Later) -> None:
    silent, dead, alive = (stored_batch(batch_store, shards=1).id for _ in range(3))
    claimed(batch_store, silent, owner="slow")
    later(59)
    for batch_id, owner in ((dead, "dead"), (alive, "alive")):
        claimed(batch_store, batch_id, owner=owner)
    assert batch_store.owners() == ["alive", "dead", "slow"]
    later(2)
    assert batch_store.rescue(owners=["dead", "nobody"]) == sorted([silent, dead])
    assert batch_store.rescue(owners=["dead"]) == []
    assert batch_store.owners() == ["alive"]


def test_resend_names_what_waited_long_and_then_waits_anew(batch_store: BatchStore, later: Later) -> None:
    batch, paused = stored_batch(batch_store, shards=4), stored_batch(batch_store)
    for batch_id in (batch.id, paused.id):
        batch_store.queue_window(batch_id, spare=2)
    batch_store.move(paused.id, BatchState.PAUSED)
    later(30)
    claimed(batch_store, batch.id, number=0)
    batch_store.queue_window(batch.id, spare=2)
    later(31)
    assert batch_store.resend(older_than=60) == [(batch.id, 1)]
    assert batch_store.resend(older_than=60) == []
    later(61)
    assert batch_store.resend(older_than=60) == [(batch.id, 1), (batch.id, 2), (batch.id, 3)]


def test_resend_for_one_pool_leaves_the_others_alone(batch_store: BatchStore, later: Later) -> None:
    ours, theirs = (stored_batch(batch_store, options=BatchOptions(pool=pool)) for pool in ("ours", "theirs"))
    for batch_id in (ours.id, theirs.id):
        batch_store.queue_window(batch_id, spare=1)
    later(10)
    assert batch_store.resend(older_than=5, pool="ours") == [(ours.id, 0)]
    assert batch_store.resend(older_than=5) == [(theirs.id, 0)]


def test_one_caller_has_the_turn_per_period(batch_store: BatchStore, later: Later) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: batch_store.take_turn("upkeep", every=10), range(8))) == 1
    assert batch_store.take_turn("sweep", every=10)
    later(9)
    assert not batch_store.take_turn("upkeep", every=10)
    later(2)
    assert batch_store.take_turn("upkeep", every=10)


def test_all_have_ended_when_each_is_done_or_cancelled(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=3)
    sealed(batch_store, batch.id)
    assert not batch_store.all_ended(batch.id)
    attempt = claimed(batch_store, batch.id)
    batch_store.move(batch.id, BatchState.CANCELLING)
    assert batch_store.cancel_unstarted(batch.id) == 1
    assert not batch_store.all_ended(batch.id)
    seal(batch_store, attempt)
    assert batch_store.all_ended(batch.id)
    assert batch_store.all_ended("batch_of_nobody")


def test_cancelling_spares_what_an_attempt_has_touched(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=5)
    batch_store.queue_window(batch.id, spare=2)
    sealed(batch_store, batch.id)
    claimed(batch_store, batch.id)
    batch_store.release(claimed(batch_store, batch.id))
    batch_store.move(batch.id, BatchState.CANCELLING)
    assert batch_store.cancel_unstarted(batch.id) == 2
    assert batch_store.cancel_unstarted(batch.id) == 0
    states = [ShardState.DONE, ShardState.RUNNING, ShardState.PENDING, ShardState.CANCELLED, ShardState.CANCELLED]
    assert states_of(batch_store, batch.id) == states
    assert whole(batch_store.progress(batch.id)).counts.failed == 6
    assert claimed(batch_store, batch.id).shard.number == 2


@pytest.mark.parametrize(
    ("states", "window"),
    [([], 60), ([BatchState.PAUSED], 60), ([BatchState.FINALIZING, BatchState.COMPLETED], 60), ([], None)],
)
def test_of_a_batch_that_is_not_ending_nothing_is_cancelled(
    batch_store: BatchStore, later: Later, states: list[BatchState], window: float | None
) -> None:
    batch = stored_batch(batch_store, window=window)
    end(batch_store, batch.id, *states)
    later(61 if states or window is None else 59)
    assert batch_store.cancel_unstarted(batch.id) == 0
    assert states_of(batch_store, batch.id) == [ShardState.PENDING] * 2


def test_a_batch_past_its_window_is_cancelled_as_far_as_nobody_began_it(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store, window=60)
    later(61)
    assert batch_store.cancel_unstarted(batch.id) == 2


def test_an_attempt_knows_how_often_its_shard_lost_its_worker(batch_store: BatchStore, later: Later) -> None:
    batch = stored_batch(batch_store, shards=2)
    claimed(batch_store, batch.id, number=0, owner="dead")
    batch_store.rescue(owners=["dead"])
    batch_store.release(claimed(batch_store, batch.id, number=0))
    claimed(batch_store, batch.id, number=0)
    later(61)
    batch_store.rescue()
    assert [claimed(batch_store, batch.id, number=number).lost for number in range(2)] == [2, 0]


@pytest.mark.parametrize("begun_again_by", ["resume", "retry"])
def test_a_batch_that_is_begun_again_forgets_who_lost_workers(batch_store: BatchStore, begun_again_by: str) -> None:
    batch = stored_batch(batch_store, shards=1)
    claimed(batch_store, batch.id, owner="dead")
    batch_store.rescue(owners=["dead"])
    if begun_again_by == "resume":
        end(batch_store, batch.id, BatchState.PAUSED, BatchState.IN_PROGRESS)
    else:
        sealed(batch_store, batch.id, failed={1: "boom"})
        end(batch_store, batch.id, BatchState.FINALIZING, BatchState.COMPLETED)
        batch_store.reset_failed(batch.id, None)
    assert claimed(batch_store, batch.id).lost == 0


def test_the_counts_of_all_shards_are_summed_field_by_field(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=2, requests=100)
    for number in range(2):
        attempt = claimed(batch_store, batch.id, number=number)
        counts = Counts(*(range(20, 20 + len(COUNT_FIELDS))))
        batch_store.heartbeat([Beat(attempt.token, replace(counts, cached=10))], lease=60)
    expected = replace(Counts(*(2 * n for n in range(20, 20 + len(COUNT_FIELDS)))), cached=20)
    assert whole(batch_store.progress(batch.id)).counts == expected


def test_the_engines_of_a_batch_are_those_that_its_shards_were_claimed_for(batch_store: BatchStore) -> None:
    batch = stored_batch(batch_store, shards=4)
    mock, server = EngineIdentity("mock", "mock"), EngineIdentity("openai", "host", "r1", "m")
    assert batch_store.engines(batch.id) == batch_store.engines("batch_nobody") == []
    for engine in (mock, server, server, None):
        attempt = batch_store.claim(batch.id, number=None, owner="w", lease=60, engine=engine)
    assert attempt is not None
    batch_store.release(attempt)
    assert sorted(engine.name for engine in batch_store.engines(batch.id)) == ["mock", "openai"]
    assert server in batch_store.engines(batch.id)


@pytest.mark.parametrize("silent", [False, True])
def test_what_an_attempt_leaves_in_its_checkpoint_is_told_until_the_next_begins(
    batch_store: BatchStore, later: Later, silent: bool
) -> None:
    batch = stored_batch(batch_store)
    attempt = claimed(batch_store, batch.id)
    batch_store.heartbeat([Beat(attempt.token, Counts(succeeded=2, failed=1))], lease=60)
    assert batch_store.progress(batch.id).kept == 0
    if silent:
        later(61)
        batch_store.rescue()
    else:
        batch_store.release(attempt)
    progress = whole(batch_store.progress(batch.id))
    assert (progress.counts.finished, progress.kept) == (0, 2)
    again = claimed(batch_store, batch.id)
    assert batch_store.progress(batch.id).kept == 0
    batch_store.release(again)
    assert batch_store.progress(batch.id).kept == 2
