"""The values of a batch and how their numbers add up."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.batch import COUNT_FIELDS, Batch, BatchOptions, CacheMode, Counts, Progress, new_batch_id
from synthgen.errors import BadInput
from synthgen.states import BatchState, ShardState

BATCH = Batch(
    id="batch_1",
    name="questions",
    state=BatchState.IN_PROGRESS,
    options=BatchOptions(pool="gpu", model="m"),
    fingerprint="f",
    created_at=datetime(2026, 8, 21, 12, 0, 0, 123456, tzinfo=UTC),
    input_key="batches/batch_1/input.jsonl",
    input_bytes=100,
    input_lines=12,
    total=10,
    rejected=2,
    shards=2,
)

counts = st.builds(
    Counts, *[st.integers(0, 10**9)] * 7, *[st.integers(0, 10**6).map(float)] * 2
)  # whole sums, so that adding is exact


@given(counts, counts, counts)
def test_counts_add_field_by_field_in_any_order(a: Counts, b: Counts, c: Counts) -> None:
    total = a + b + c
    assert total == c + (b + a)
    for name in COUNT_FIELDS:
        assert getattr(total, name) == sum(getattr(part, name) for part in (a, b, c))


def test_adding_nothing_changes_nothing() -> None:
    some = Counts(*range(1, len(COUNT_FIELDS) + 1))
    assert some + Counts() == some
    assert [f.name for f in fields(Counts)] == list(COUNT_FIELDS)


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_total_is_succeeded_failed_running_and_pending_together(succeeded: int, failed: int, running: int) -> None:
    batch = replace(BATCH, total=30, input_lines=32)
    shown = Progress(batch, Counts(succeeded=succeeded, failed=failed), running, {}).as_dict()
    assert shown["total"] == shown["succeeded"] + shown["failed"] + shown["running"] + shown["pending"]


def test_a_batch_whose_lines_do_not_add_up_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="12 lines are not 9 requests and 2 rejected"):
        replace(BATCH, total=9)


def test_a_cost_that_nobody_knows_is_null_and_one_that_is_known_in_part_is_its_sum() -> None:
    def money(**counts: Any) -> tuple[object, object]:
        shown = Progress(BATCH, Counts(**counts), 0, {}).as_dict()
        return shown["cost"], shown["saved"]

    assert money(failed=3) == (0.0, 0.0)
    assert money(succeeded=3) == (0.0, 0.0)
    assert money(succeeded=3, unpriced=3) == (None, 0.0)
    assert money(succeeded=3, cost=0.5, unpriced=2) == (0.5, 0.0)
    assert money(succeeded=5, cached=2, unpriced=3, unpriced_cached=2) == (None, None)
    assert money(succeeded=5, cached=2, saved=0.25, unpriced_cached=1) == (0.0, 0.25)


def test_progress_shows_the_stable_names_as_plain_json_values() -> None:
    spent = Counts(4, 1, 2, 10, 20, 3, 4, cost=0.12345678, saved=0.5)
    shown = Progress(BATCH, spent, 3, {ShardState.RUNNING: 1, ShardState.DONE: 1}).as_dict()
    assert shown == {
        "id": "batch_1",
        "name": "questions",
        "status": "in_progress",
        "reason": None,
        "pool": "gpu",
        "model": "m",
        "created_at": "2026-08-21T12:00:00.123+00:00",
        "started_at": None,
        "completed_at": None,
        "expires_at": None,
        "total": 10,
        "succeeded": 4,
        "failed": 1,
        "cached": 2,
        "rejected": 2,
        "running": 3,
        "kept": 0,
        "pending": 2,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cached_prompt_tokens": 3,
        "cached_completion_tokens": 4,
        "cost": 0.123457,
        "saved": 0.5,
        "unpriced": 0,
        "unpriced_cached": 0,
        "shards": {"pending": 0, "queued": 0, "running": 1, "done": 1, "cancelled": 0},
    }


@pytest.mark.parametrize(
    ("mode", "namespace"),
    [(CacheMode.USE, "mine"), (CacheMode.REFRESH, "mine"), (CacheMode.OFF, "batch:batch_1")],
)
def test_without_reuse_a_batch_keeps_its_answers_in_its_own_corner(mode: CacheMode, namespace: str) -> None:
    batch = replace(BATCH, options=BatchOptions(cache=mode, namespace="mine"))
    assert batch.cache_namespace == namespace
    assert batch.checkpoint_namespace == "batch:batch_1"


def test_options_become_the_rules_of_lines() -> None:
    options = BatchOptions(endpoint="/v1/completions", model="m", prompt="Q: {q}", system="s", max_line_bytes=99)
    rules = options.rules(engine_model="other")
    assert (rules.endpoint, rules.model, rules.system, rules.max_bytes) == ("/v1/completions", "m", "s", 99)
    assert rules.render is not None
    assert rules.render({"q": "x"}) == "Q: x"


def test_the_engines_model_serves_only_where_the_batch_names_none() -> None:
    assert BatchOptions().rules(engine_model="other").model == "other"
    assert BatchOptions().rules().model is None


@pytest.mark.parametrize("wrong", [{"endpoint": "/v1/chat"}, {"prompt": "no field"}])
def test_an_unknown_endpoint_or_a_text_that_is_no_template_is_bad_input(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        BatchOptions(**wrong).rules()


def test_batch_ids_are_opaque_and_differ() -> None:
    assert new_batch_id() != new_batch_id()
    assert new_batch_id().startswith("batch_")
    assert len(new_batch_id()) == len("batch_") + 24
