"""What every response cache keeps: on PostgreSQL and in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from synthgen.ports import BatchStore, ResponseCache
from synthgen.states import BatchState
from tests.contract.conftest import Later
from tests.examples import claimed, some_entry, some_key, stored_batch


def test_an_answer_comes_back_as_it_was_stored(response_cache: ResponseCache) -> None:
    body = '{"text":"ü 漢字 \\u0000 👍"}'.encode()
    entries = [some_entry(1, body=body), some_entry(2, cost=None, request_id=None, origin=0, engine="", ttft_ms=None)]
    response_cache.put(entries)
    found = response_cache.lookup([some_key(n) for n in (1, 2, 3)])
    assert found == {entry.key: entry for entry in entries}


def test_nothing_asked_and_nothing_stored_are_no_trouble(response_cache: ResponseCache) -> None:
    response_cache.put([])
    assert response_cache.lookup([]) == {}
    assert response_cache.reserve([], owner=1, lease=10) == set()


def test_a_thousand_answers_with_repeated_keys_are_looked_up_in_one_call(response_cache: ResponseCache) -> None:
    entries = [some_entry(n) for n in range(1_000)]
    response_cache.put(entries)
    keys = [entry.key for entry in entries]
    assert response_cache.lookup(keys + keys) == {entry.key: entry for entry in entries}


def test_the_first_answer_stays(response_cache: ResponseCache) -> None:
    response_cache.put([some_entry(1, body=b"first"), some_entry(1, body=b"same call")])
    response_cache.put([some_entry(1, body=b"later")])
    assert response_cache.lookup([some_key(1)])[some_key(1)].body == b"first"


def test_an_answer_is_gone_when_its_time_is_over_and_may_then_be_replaced(
    response_cache: ResponseCache, later: Later
) -> None:
    response_cache.put([some_entry(1, ttl=10), some_entry(2, ttl=100), some_entry(3)])
    later(11)
    assert set(response_cache.lookup([some_key(n) for n in (1, 2, 3)])) == {some_key(2), some_key(3)}
    anew = some_entry(1, body=b"anew", model="other", engine="vllm/0.33.0", ttft_ms=7.5, itl_ms=None)
    response_cache.put([anew])
    assert response_cache.lookup([some_key(1)])[some_key(1)] == anew


def test_a_refresh_sees_and_keeps_only_what_is_newer_than_its_beginning(
    response_cache: ResponseCache, later: Later
) -> None:
    response_cache.put([some_entry(1, body=b"old")])
    later(60)
    response_cache.put([some_entry(2, body=b"new")])
    beginning = response_cache.stats()[0].newest
    keys = [some_key(1), some_key(2)]
    assert set(response_cache.lookup(keys, not_before=beginning)) == {some_key(2)}
    response_cache.put([some_entry(n, body=b"refreshed") for n in (1, 2)], replace_before=beginning)
    found = response_cache.lookup(keys, not_before=beginning)
    assert {key: entry.body for key, entry in found.items()} == {some_key(1): b"refreshed", some_key(2): b"new"}


def test_an_announced_key_is_refused_to_others_until_it_is_given_back(response_cache: ResponseCache) -> None:
    keys = [some_key(n) for n in range(3)]
    assert response_cache.reserve(keys[:2], owner=1, lease=60) == set(keys[:2])
    assert response_cache.reserve(keys, owner=2, lease=60) == {keys[2]}
    assert response_cache.reserve(keys, owner=1, lease=60) == set(keys[:2])
    response_cache.unreserve(owner=1)
    assert response_cache.reserve(keys, owner=2, lease=60) == set(keys)


def test_an_announcement_lapses(response_cache: ResponseCache, later: Later) -> None:
    assert response_cache.reserve([some_key(1)], owner=1, lease=10) == {some_key(1)}
    later(11)
    assert response_cache.reserve([some_key(1)], owner=2, lease=10) == {some_key(1)}
    assert response_cache.reserve([some_key(1)], owner=1, lease=10) == set()


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        ({}, set()),
        ({"namespace": "mine"}, {1, 2}),
        ({"model": "small"}, {1, 3}),
        ({"namespace": "default", "model": "small"}, {1, 3, 4}),
        ({"namespace": "nobody's"}, {1, 2, 3, 4}),
    ],
)
def test_purge_removes_what_matches_all_conditions(
    response_cache: ResponseCache, conditions: dict[str, Any], left: set[int]
) -> None:
    response_cache.put([some_entry(1, model="large"), some_entry(2, model="small")])
    response_cache.put([some_entry(n, namespace="mine", model=m) for n, m in ((3, "large"), (4, "small"))])
    assert response_cache.purge(**conditions) == 4 - len(left)
    keys = {some_key(n): n for n in (1, 2, 3, 4)}
    assert {keys[key] for key in response_cache.lookup(list(keys))} == left


def test_purge_by_age_keeps_the_younger(response_cache: ResponseCache, later: Later) -> None:
    response_cache.put([some_entry(1)])
    later(100)
    response_cache.put([some_entry(2)])
    assert response_cache.purge(older_than=50) == 1
    assert set(response_cache.lookup([some_key(1), some_key(2)])) == {some_key(2)}


def test_shrink_removes_the_expired_and_then_the_oldest(response_cache: ResponseCache, later: Later) -> None:
    response_cache.put([some_entry(1, ttl=10)])
    for n in (2, 3, 4):
        response_cache.put([some_entry(n)])
        later(20)
    assert response_cache.shrink(max_bytes=None) == 1
    size = response_cache.stats()[0].size // 3
    assert response_cache.shrink(max_bytes=2 * size) == 1
    assert response_cache.shrink(max_bytes=2 * size) == 0
    assert set(response_cache.lookup([some_key(n) for n in (1, 2, 3, 4)])) == {some_key(3), some_key(4)}


def test_shrink_spares_what_an_unfinished_batch_may_go_on_from(
    response_cache: ResponseCache, batch_store: BatchStore, later: Later
) -> None:
    stored_batch(batch_store)  # has not begun, so it has no checkpoint
    response_cache.put([some_entry(1)])
    later(10)
    batch = stored_batch(batch_store)
    claimed(batch_store, batch.id)
    response_cache.put([some_entry(2)])
    later(10)
    response_cache.put([some_entry(3)])
    assert response_cache.shrink(max_bytes=0) == 1
    assert set(response_cache.lookup([some_key(n) for n in (1, 2, 3)])) == {some_key(2), some_key(3)}
    for state in (BatchState.PAUSED, BatchState.CANCELLING):
        batch_store.move(batch.id, state)
        assert response_cache.shrink(max_bytes=0) == 0
    batch_store.move(batch.id, BatchState.CANCELLED)
    assert response_cache.shrink(max_bytes=0) == 2


def test_stats_sum_by_namespace_and_model_largest_first(response_cache: ResponseCache, later: Later) -> None:
    response_cache.put([some_entry("small", model="little", cost=None)])
    later(60)
    response_cache.put([some_entry(n, namespace="mine") for n in range(5)])
    mine, little = response_cache.stats()
    assert (mine.namespace, mine.model, mine.entries) == ("mine", "some-model", 5)
    assert (mine.prompt_tokens, mine.completion_tokens, mine.cost) == (50, 25, 1.25)
    assert (little.namespace, little.model, little.entries, little.cost) == ("default", "little", 1, 0.0)
    assert mine.size > little.size > 0
    assert little.oldest == little.newest < mine.oldest
    assert mine.oldest.utcoffset() is not None


def test_names_that_postgres_cannot_hold_do_not_stop_the_checkpoint(response_cache: ResponseCache) -> None:
    odd = replace(some_entry(1), model="nul\0in", request_id="half \ud83d pair")
    response_cache.put([odd])
    assert response_cache.lookup([odd.key])[odd.key].body == odd.body
