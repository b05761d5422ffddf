"""What a shard knows before it asks: the cache, equal questions of others, the round before a retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from synthgen.batch import CacheMode
from synthgen.control import cancel, resume, retry
from synthgen.request import Request
from synthgen.response import Reply
from synthgen.run_shard import run_shard
from synthgen.states import BatchState
from tests.fakes.scripted_engine import PATIENCE, Gate, ScriptedEngine
from tests.workshop import BROKEN, REFUSED, WRONG_KEY, Workshop, echo, error_codes, failing, gated, questions

Make = Callable[..., Workshop]


# ---- the cache


def test_what_the_cache_knows_is_not_asked_and_is_counted_apart(workshop: Workshop) -> None:
    workshop.run(workshop.submitted(questions(3)))
    asked = len(workshop.asked)
    batch = workshop.submitted(questions(4))
    workshop.run(batch)
    assert workshop.asked[asked:] == ["line-4"]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["cached"]) == (4, 3)
    assert (progress["prompt_tokens"], progress["cached_prompt_tokens"]) == (2, 6)
    assert (progress["completion_tokens"], progress["cached_completion_tokens"]) == (3, 9)
    assert (progress["cost"], progress["saved"]) == (0.5, 1.5)
    ours = [line["synthgen"] for line in workshop.results(batch)]
    assert [(told["cached"], told["attempts"]) for told in ours] == [(True, 0), (True, 0), (True, 0), (False, 1)]


def test_answers_without_a_price_are_counted_apart(workshop_with: Make) -> None:
    def reply(request: Request, number: int) -> Reply | Exception:
        return Reply(b"{}", 2, 3, 0.5 if request.custom_id == "line-1" else None)

    workshop = workshop_with(reply)
    first, again = workshop.submitted(questions(3)), workshop.submitted(questions(3), shard_requests=2)
    workshop.run(first)
    workshop.run(again)
    assert [workshop.progress(first)[name] for name in ("cost", "unpriced", "unpriced_cached")] == [0.5, 2, 0]
    assert [workshop.progress(again)[name] for name in ("saved", "unpriced", "unpriced_cached")] == [0.5, 0, 2]


def test_failed_rows_cost_nothing_that_is_unknown(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-1": REFUSED}))
    batch = workshop.run(workshop.submitted(questions(1)))
    assert workshop.progress(batch)["unpriced"] == 0


def test_a_batch_that_is_all_cached_asks_nobody(workshop: Workshop) -> None:
    workshop.run(workshop.submitted(questions(3)))
    asked = len(workshop.asked)
    batch = workshop.submitted(questions(3))
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert len(workshop.asked) == asked


def test_repeated_lines_are_distinct_samples_and_stay_so_when_run_again(workshop_with: Make) -> None:
    samples = iter(range(100))
    workshop = workshop_with(lambda request, number: Reply(b'{"sample":%d}' % next(samples)))
    rows = [{"prompt": "a joke"}] * 5
    first = workshop.submitted(rows, shard_requests=2)
    workshop.run(first)
    second = workshop.submitted(rows, shard_requests=3)
    workshop.run(second)
    told = [[line["response"]["body"]["sample"] for line in workshop.results(batch)] for batch in (first, second)]
    assert sorted(told[0]) == [0, 1, 2, 3, 4]
    assert told[0] == told[1]
    assert workshop.progress(second)["cached"] == 5


@pytest.mark.parametrize(
    "change", [{"namespace": "mine"}, {"model": "other"}, {"defaults": {"temperature": 0.5}}, {"cache": CacheMode.OFF}]
)
def test_answers_are_not_shared_between_different_questions_and_namespaces(
    workshop: Workshop, change: dict[str, Any]
) -> None:
    workshop.run(workshop.submitted(questions(2)))
    batch = workshop.submitted(questions(2), **change)
    workshop.run(batch)
    assert len(workshop.asked) == 4
    assert workshop.progress(batch)["cached"] == 0


@pytest.mark.parametrize("change", [{"provider": "other"}, {"revision": "abc"}])
def test_answers_of_another_provider_or_revision_are_other_answers(workshop: Workshop, change: dict[str, str]) -> None:
    workshop.run(workshop.submitted(questions(2)))
    workshop.run(workshop.submitted(questions(2)), worker=workshop.another_worker(workshop.engine, **change))
    assert len(workshop.asked) == 4


def test_refresh_asks_anew_and_replaces_what_was_there(workshop_with: Make) -> None:
    samples = iter(range(100))
    workshop = workshop_with(lambda request, number: Reply(b'{"sample":%d}' % next(samples)))
    workshop.run(workshop.submitted(questions(1)))
    workshop.clock.advance(60)
    fresh = workshop.submitted(questions(1), cache=CacheMode.REFRESH)
    workshop.run(fresh)
    workshop.clock.advance(60)
    later = workshop.submitted(questions(1))
    workshop.run(later)
    assert workshop.results(fresh)[0]["response"]["body"] == {"sample": 1}
    assert workshop.results(later)[0]["response"]["body"] == {"sample": 1}
    assert workshop.progress(later)["cached"] == 1


def test_without_reuse_nothing_is_left_in_the_cache_when_the_batch_has_ended(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3), cache=CacheMode.OFF)
    workshop.run(batch)
    assert workshop.cache.entries
    assert workshop.cache.stats() == []


def test_an_answer_has_the_lifetime_that_was_asked_for(workshop: Workshop) -> None:
    workshop.run(workshop.submitted(questions(1), cache_ttl=100))
    workshop.clock.advance(101)
    workshop.run(workshop.submitted(questions(1), cache_ttl=100))
    assert len(workshop.asked) == 2


def test_without_reuse_the_checkpoint_lives_as_long_as_the_batch(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": WRONG_KEY}), in_flight=1)
    batch = workshop.submitted(questions(3), cache=CacheMode.OFF, cache_ttl=100)
    assert workshop.run(batch).state is BatchState.PAUSED
    workshop.clock.advance(101)
    workshop.engine.answer = echo
    resume(workshop.services, batch.id)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked == ["line-1", "line-2", "line-2", "line-3"]


# ---- deterministic repeats

SUM = {"prompt": "1+1", "temperature": 0}


def test_equal_deterministic_lines_of_a_shard_are_asked_once(workshop: Workshop) -> None:
    batch = workshop.submitted([SUM, {"prompt": "else"}, SUM, SUM])
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert sorted(workshop.asked) == ["line-1", "line-2"]
    results = workshop.results(batch)
    assert [line["synthgen"]["cached"] for line in results] == [False, False, True, True]
    assert len({line["response"]["body"]["choices"][0]["message"]["content"] for line in results}) == 2
    assert workshop.progress(batch)["cost"] == 1.0


def test_equal_lines_of_a_shard_take_the_answer_as_soon_as_it_is_there(workshop_with: Make) -> None:
    workshop = workshop_with(checkpoint=10 * PATIENCE)  # whoever waited for another round would wait too long
    assert workshop.start(workshop.submitted([SUM, SUM])).join()
    assert workshop.asked == ["line-1"]


def test_equal_deterministic_lines_of_two_shards_at_once_are_asked_once(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-1"))
    batch = workshop.submitted([SUM, SUM], shard_requests=1)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    other_engine = ScriptedEngine(echo)
    waiting = workshop.start(batch, worker=workshop.another_worker(other_engine))
    workshop.cache.wait_for_lookups(50)  # it looks again and again, and asks nobody
    assert other_engine.asked == []
    gate.open()
    assert running.join()
    assert waiting.join()
    assert other_engine.asked == []
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED
    assert workshop.progress(batch)["cached"] == 1


def test_when_the_one_that_asks_is_dead_another_takes_its_turn(workshop: Workshop) -> None:
    workshop.run(workshop.submitted([SUM, SUM]))
    (entry,) = workshop.cache.entries
    workshop.cache.purge()
    dead = 999
    workshop.cache.reserve([entry.key], owner=dead, lease=60)
    batch = workshop.submitted([SUM, SUM])
    waiting = workshop.start(batch)
    workshop.cache.wait_for_lookups(20)
    assert workshop.asked == ["line-1"]
    workshop.clock.advance(61)
    assert waiting.join()
    assert workshop.asked == ["line-1", "line-1"]
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED


def test_the_failure_of_a_shared_question_is_shared_within_the_shard_and_asked_once(workshop_with: Make) -> None:
    workshop = workshop_with(lambda request, number: REFUSED)
    batch = workshop.submitted([SUM, SUM, SUM])
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked == ["line-1"]
    results = workshop.results(batch)
    assert [line["synthgen"]["error_code"] for line in results] == ["context_length_exceeded"] * 3
    assert [line["synthgen"]["attempts"] for line in results] == [1, 0, 0]
    assert [line["custom_id"] for line in results] == ["line-1", "line-2", "line-3"]


def test_a_question_that_we_ask_is_answered_by_our_reply_alone_whatever_the_cache_learns(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-1"))
    batch = workshop.submitted([SUM, SUM])
    running = workshop.start(batch)
    gate.wait_for_somebody()
    workshop.run(workshop.submitted([SUM]), worker=workshop.another_worker(ScriptedEngine(echo)))
    workshop.cache.wait_for_announcements(2)
    gate.open()
    assert running.join()
    assert workshop.store.get(batch.id).state is BatchState.COMPLETED
    assert [line["synthgen"]["cached"] for line in workshop.results(batch)] == [False, True]


def test_equal_lines_take_the_answer_of_the_one_that_asked_also_when_the_cache_has_lost_it(workshop: Workshop) -> None:
    put = workshop.cache.put

    def forgetful(*args: Any, **options: Any) -> None:
        put(*args, **options)
        workshop.cache.purge()

    workshop.cache.put = forgetful  # type: ignore[method-assign]
    batch = workshop.submitted([SUM, SUM])
    assert workshop.start(batch).join()
    assert workshop.asked == ["line-1"]
    ours = [line["synthgen"] for line in workshop.results(batch)]
    assert [(told["cached"], told["attempts"]) for told in ours] == [(False, 1), (True, 0)]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["cost"], progress["saved"]) == (2, 0.5, 0.5)


def test_a_question_that_takes_long_stays_announced_also_where_no_other_line_waits_for_it(workshop_with: Make) -> None:
    gate = Gate()
    workshop = workshop_with(gated(gate, "line-1"))
    batch = workshop.submitted([SUM, SUM], shard_requests=1)
    running = workshop.start(batch)
    gate.wait_for_somebody()
    (key,) = workshop.cache._claims
    for _ in range(4):
        workshop.clock.advance(workshop.limits.lease)
        workshop.worker.keeper.beat()
        workshop.cache.wait_for_announcements(2)
    assert workshop.cache.reserve([key], owner=999, lease=60) == set()
    gate.open()
    assert running.join()


def test_no_announcement_stays_behind(workshop: Workshop) -> None:
    workshop.run(workshop.submitted([SUM, SUM]))
    assert workshop.cache._claims == {}


# ---- again, for the failed ones


def test_a_retry_carries_over_what_succeeded_and_asks_only_what_failed(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED, "line-3": BROKEN}))
    batch = workshop.submitted(questions(4))
    workshop.run(batch)
    workshop.cache.purge()
    first_round = workshop.results(batch)
    workshop.engine.answer = echo
    asked = len(workshop.asked)
    assert retry(workshop.services, batch.id) == 2
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert sorted(workshop.asked[asked:]) == ["line-2", "line-3"]
    results = workshop.results(batch)
    assert [results[0], results[3]] == [first_round[0], first_round[3]]
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["failed"], progress["cost"]) == (4, 0, 2.0)
    assert (progress["prompt_tokens"], progress["completion_tokens"]) == (8, 12)


def test_a_retry_of_one_cause_leaves_the_other_failures_as_they_are(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED, "line-3": BROKEN}))
    batch = workshop.submitted(questions(4))
    workshop.run(batch)
    workshop.engine.answer = echo
    asked = len(workshop.asked)
    assert retry(workshop.services, batch.id, codes=["server_error"]) == 1
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert workshop.asked[asked:] == ["line-3"]
    assert error_codes(workshop.results(batch)) == [
        None,
        "context_length_exceeded",
        None,
        None,
    ]


def test_a_retry_that_is_cancelled_before_it_runs_keeps_the_round_before(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(3))
    workshop.run(batch)
    before = workshop.results(batch)
    retry(workshop.services, batch.id)
    assert cancel(workshop.services, batch.id).state is BatchState.CANCELLED
    assert workshop.results(batch) == before
    progress = workshop.progress(batch)
    assert (progress["succeeded"], progress["failed"]) == (2, 1)


def test_a_cancelled_batch_can_be_retried_to_its_end(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2)
    assert run_shard(workshop.services, workshop.worker, batch.id, number=0)
    assert cancel(workshop.services, batch.id).state is BatchState.CANCELLED
    assert retry(workshop.services, batch.id) == 2
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert [line["error"] for line in workshop.results(batch)] == [None] * 4
    assert sorted(workshop.asked) == ["line-1", "line-2", "line-3", "line-4"]


def test_rows_that_an_earlier_cancel_left_make_a_retried_batch_cancelled_again(workshop_with: Make) -> None:
    """Shard 0 is asked again for its server error; shard 1, closed with a line that never ran, stays as it is."""
    workshop = workshop_with(failing({"line-1": BROKEN, "line-4": WRONG_KEY}))
    batch = workshop.submitted(questions(4), shard_requests=2)
    workshop.run(batch)
    cancel(workshop.services, batch.id)
    assert workshop.progress(batch)["failed"] == 2
    workshop.engine.answer = echo
    assert retry(workshop.services, batch.id, codes=["server_error"]) == 1
    assert workshop.run(batch).state is BatchState.CANCELLED
    assert error_codes(workshop.results(batch)) == [None, None, None, "batch_cancelled"]
