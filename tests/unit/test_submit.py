"""From lines to a batch: what is stored, what is refused, and when two submissions are one."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from synthgen.batch import SHARED, Batch, BatchOptions, CacheMode, OnInvalid, Shard
from synthgen.control import cancel, pause
from synthgen.errors import BadInput, InvalidLines, ServiceUnavailable, StateConflict
from synthgen.request import CHAT, COMPLETIONS, EMBEDDINGS
from synthgen.sharding import input_key
from synthgen.states import BatchState, ShardState
from synthgen.submit import Submission, submit
from tests.workshop import MemorySource, Workshop, jsonl, questions

FOR_ALL = {"model": "m", "input": "q", "prompt": "q"}
SKIP = {"on_invalid": OnInvalid.SKIP}


def submit_sources(workshop: Workshop, *sources: MemorySource, new: bool = False, **options: Any) -> Submission:
    return submit(workshop.services, sources, BatchOptions(**options), name="n", new=new)


def nothing_is_stored(workshop: Workshop) -> bool:
    return not workshop.store.list_batches() and not workshop.objects.objects and not workshop.objects.unfinished


# ---- what is stored


def test_a_batch_holds_its_lines_its_shards_and_its_numbers(workshop: Workshop) -> None:
    content = jsonl(questions(5))
    submission = workshop.submit(content, shard_requests=2, pool="gpu")
    batch = submission.batch
    assert not submission.attached
    assert batch.state is BatchState.IN_PROGRESS
    assert (batch.total, batch.rejected, batch.input_lines, batch.shards) == (5, 0, 5, 3)
    assert (batch.name, batch.input_bytes, batch.input_key) == ("questions", len(content), input_key(batch.id))
    assert workshop.objects.get(batch.input_key) == content
    assert [status.shard.requests for status in workshop.store.shards(batch.id)] == [2, 2, 1]


def test_the_first_window_is_sent_after_all_is_stored(workshop_with: Any) -> None:
    workshop = workshop_with(window=2)
    batch = workshop.submitted(questions(5), shard_requests=1, pool="gpu")
    assert workshop.dispatcher.sent == [("gpu", batch.id, 0), ("gpu", batch.id, 1)]
    assert workshop.progress(batch)["shards"]["queued"] == 2


def test_a_batch_without_a_pool_sends_nothing(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    assert workshop.dispatcher.sent == []
    assert workshop.progress(batch)["shards"]["pending"] == 1


def test_a_broker_that_is_away_does_not_lose_the_batch(workshop: Workshop) -> None:
    workshop.dispatcher.away = True
    batch = workshop.submitted(questions(1), pool="gpu")
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS


@pytest.mark.parametrize(
    ("row", "endpoint"),
    [
        ({"prompt": "hi"}, CHAT),
        ({"custom_id": "a", "method": "POST", "url": EMBEDDINGS, "body": {"model": "m", "input": "hi"}}, EMBEDDINGS),
    ],
)
def test_the_first_line_gives_the_batch_its_endpoint(workshop: Workshop, row: dict[str, Any], endpoint: str) -> None:
    assert workshop.submitted([row]).options.endpoint == endpoint


def test_a_line_with_another_endpoint_than_the_first_is_a_mismatch(workshop: Workshop) -> None:
    chat = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"messages": [{"role": "user", "content": "x"}]}}
    other = {"custom_id": "b", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "x"}}
    batch = workshop.submitted([chat, other], **SKIP)
    assert [(bad.line, bad.code) for bad in workshop.store.rejected(batch.id)] == [(2, "url_mismatch")]


def test_a_completion_window_gives_the_batch_its_end(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1), completion_window=60)
    assert batch.expires_at is not None
    assert (batch.expires_at - batch.created_at).total_seconds() == 60


def test_blank_lines_count_as_lines_of_the_file_and_as_nothing_else(workshop: Workshop) -> None:
    batch = workshop.submitted(b'\n\r\n{"prompt":"a"}\r\n  \n{"prompt":"b"}')
    assert (batch.total, batch.rejected, batch.input_lines) == (2, 0, 2)
    workshop.run(batch)
    assert [line["custom_id"] for line in workshop.results(batch)] == ["line-3", "line-5"]


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_is_the_same_however_the_bytes_arrive(workshop: Workshop, seed: int) -> None:
    content = jsonl([*questions(40), *questions(5)])
    chosen = random.Random(seed)
    borders = sorted(chosen.sample(range(1, len(content)), 30))
    pieces = [content[a:b] for a, b in zip([0, *borders], [*borders, len(content)], strict=True)]
    whole = submit_sources(workshop, MemorySource(content), shard_requests=7).batch
    again = submit_sources(workshop, MemorySource(pieces), shard_requests=7)
    assert again.attached
    assert again.batch.id == whole.id


def test_several_sources_are_one_batch_also_when_a_last_newline_is_missing(workshop: Workshop) -> None:
    first, second, third = b'{"prompt":"a"}', b'\xef\xbb\xbf{"prompt":"b"}\n', b'{"prompt":"c"}'
    batch = submit_sources(workshop, *map(MemorySource, (first, second, b"", third))).batch
    assert workshop.objects.get(batch.input_key) == first + b"\n" + second + third
    assert batch.input_bytes == len(first + second + third) + 1
    workshop.run(batch)
    assert [line["custom_id"] for line in workshop.results(batch)] == ["line-1", "line-2", "line-3"]


def test_a_source_inside_the_store_is_copied_there_and_read_once(workshop: Workshop) -> None:
    source = MemorySource(jsonl(questions(3)), inside=workshop.objects)
    batch = submit_sources(workshop, source).batch
    assert source.readings == 0
    assert workshop.objects.get(batch.input_key) == b"".join(source.pieces)


def test_progress_of_reading_is_told(workshop: Workshop) -> None:
    told = []
    source = MemorySource([b'{"prompt":"a"}\n', b'{"prompt":"b"}\n'])
    submit(
        workshop.services,
        [source],
        BatchOptions(),
        name="n",
        notify=lambda step, done, total: told.append((step, done, total)),
    )
    assert told == [("reading", 15, 30), ("reading", 30, 30)]


# ---- repeats


def marks_of(workshop: Workshop, batch_id: str) -> dict[int, int]:
    found: dict[int, int] = {}
    while attempt := workshop.store.claim(batch_id, number=None, owner="x", lease=60):
        found |= dict(attempt.shard.marks)
    return found


def test_the_kth_of_equal_lines_is_marked_as_the_kth_sample(workshop: Workshop) -> None:
    row, other = {"prompt": "tell a joke"}, {"prompt": "else"}
    batch = workshop.submitted([row, other, row, row], shard_requests=2)
    assert marks_of(workshop, batch.id) == {3: 2, 4: 3}


def test_equal_deterministic_lines_are_marked_to_share_one_answer(workshop: Workshop) -> None:
    row, seeded = {"prompt": "1+1", "temperature": 0}, {"prompt": "1+1", "seed": 7}
    batch = workshop.submitted([row, seeded, row, seeded, {"prompt": "1+1"}], shard_requests=2)
    assert marks_of(workshop, batch.id) == {1: SHARED, 2: SHARED, 3: SHARED, 4: SHARED}


def test_many_samples_of_one_question_take_little_memory_a_line(workshop: Workshop) -> None:
    """With a tuple for each of them it was 150 bytes and more."""
    lines = 50_000
    source = MemorySource([b'{"prompt":"tell a joke"}\n' * 100] * (lines // 100))
    created: list[int] = []

    def create(batch: Batch, shards: Iterable[Shard], _: object) -> Batch:
        created.append(sum(len(shard.marks) for shard in shards))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop.store, "create", create)
        tracemalloc.start()
        submit_sources(workshop, source)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert created == [lines - 1]
    assert peak / lines < 100


# ---- bad lines

GARBAGE = [b"no json", {"prompt": "good"}, b"[]", {"prompt": 5}]


def test_fail_stores_nothing_and_tells_line_code_and_reason(workshop: Workshop) -> None:
    with pytest.raises(InvalidLines) as told:
        workshop.submit(GARBAGE)
    assert [(bad.line, bad.code) for bad in told.value.first] == [
        (1, "invalid_json_line"),
        (3, "invalid_request"),
        (4, "invalid_request"),
    ]
    assert told.value.total == 3
    assert nothing_is_stored(workshop)


def test_fail_shows_the_first_twenty_of_many(workshop: Workshop) -> None:
    with pytest.raises(InvalidLines) as told:
        workshop.submit([b"garbage"] * 50)
    assert [bad.line for bad in told.value.first] == list(range(1, 21))
    assert told.value.total == 50


def test_fail_removes_what_was_copied_inside_the_store(workshop: Workshop) -> None:
    with pytest.raises(InvalidLines):
        submit_sources(workshop, MemorySource(b"garbage\n", inside=workshop.objects))
    assert nothing_is_stored(workshop)


def test_skip_runs_the_good_lines_and_keeps_every_rejected_one(workshop: Workshop) -> None:
    batch = workshop.submitted(GARBAGE, **SKIP)
    assert (batch.total, batch.rejected, batch.input_lines) == (1, 3, 4)
    kept = list(workshop.store.rejected(batch.id))
    assert [(bad.line, bad.code) for bad in kept] == [
        (1, "invalid_json_line"),
        (3, "invalid_request"),
        (4, "invalid_request"),
    ]
    assert all(bad.message for bad in kept)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert [line["custom_id"] for line in workshop.results(batch)] == ["line-2"]


def test_the_first_line_with_an_id_keeps_it_and_later_ones_are_rejected_in_line_order(workshop: Workshop) -> None:
    ids = ["a", "b", "a", "c", "b", "a"]
    rows: list[Any] = [{"prompt": f"q{n}", "custom_id": name} for n, name in enumerate(ids)]
    rows.insert(4, b"garbage")
    batch = workshop.submitted(rows, shard_requests=2, **SKIP)
    assert [(bad.line, bad.code) for bad in workshop.store.rejected(batch.id)] == [
        (3, "duplicate_custom_id"),
        (5, "invalid_json_line"),
        (6, "duplicate_custom_id"),
        (7, "duplicate_custom_id"),
    ]
    assert (batch.total, batch.rejected) == (3, 4)
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert [line["custom_id"] for line in workshop.results(batch)] == ["a", "b", "c"]


def test_a_shard_that_lost_all_its_lines_to_repeated_ids_still_ends(workshop: Workshop) -> None:
    batch = workshop.submitted([{"prompt": "q", "custom_id": "a"}] * 4, shard_requests=2, **SKIP)
    assert [status.shard.requests for status in workshop.store.shards(batch.id)] == [1, 0]
    assert workshop.run(batch).state is BatchState.COMPLETED
    assert len(workshop.results(batch)) == 1


def test_repeated_ids_fail_the_file_under_fail(workshop: Workshop) -> None:
    with pytest.raises(InvalidLines) as told:
        workshop.submit([{"prompt": "q", "custom_id": "a"}] * 2)
    (bad,) = told.value.first
    assert (bad.line, bad.code) == (2, "duplicate_custom_id")
    assert "line 1" in bad.message


def test_bad_lines_are_told_in_line_order_whatever_is_wrong_with_them(workshop: Workshop) -> None:
    same = {"prompt": "q", "custom_id": "a"}
    with pytest.raises(InvalidLines) as told:
        workshop.submit([same, b"garbage", same, b"garbage", same])
    assert [bad.line for bad in told.value.first] == [2, 3, 4, 5]


def test_bad_lines_of_several_inputs_are_told_by_file_and_line(workshop: Workshop) -> None:
    same = {"prompt": "q", "custom_id": "x"}
    first = MemorySource([b'{"prompt":"p"}\n\n', jsonl([same]).rstrip(b"\n")], name="a.jsonl")
    empty = MemorySource(b"", name="empty.jsonl")
    last = MemorySource([b"garb", b"age\n" + jsonl([same])], name="b.jsonl")
    with pytest.raises(InvalidLines) as told:
        submit_sources(workshop, first, empty, last)
    garbage, repeated = told.value.first
    assert (garbage.line, repeated.line) == (4, 5)
    assert garbage.message.startswith("b.jsonl:1: Line is not valid JSON")
    assert repeated.message == "b.jsonl:2: Field 'custom_id' is the same as on a.jsonl:3."


def test_a_named_line_and_a_line_named_by_its_number_may_collide(workshop: Workshop) -> None:
    with pytest.raises(InvalidLines) as told:
        workshop.submit([{"prompt": "a", "custom_id": "line-2"}, {"prompt": "b"}])
    assert [bad.line for bad in told.value.first] == [2]


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_an_empty_input_is_bad_input(workshop: Workshop, content: bytes) -> None:
    with pytest.raises(BadInput, match="empty"):
        workshop.submit(content)
    assert nothing_is_stored(workshop)


def test_an_input_of_nothing_but_rejected_lines_has_nothing_to_run(workshop: Workshop) -> None:
    with pytest.raises(BadInput, match="no line that can run"):
        workshop.submit(b"garbage\n", **SKIP)
    assert nothing_is_stored(workshop)


def test_a_bad_template_is_told_before_anything_is_read(workshop: Workshop) -> None:
    source = MemorySource(b'{"q":"a"}\n')
    with pytest.raises(BadInput, match="template"):
        submit_sources(workshop, source, prompt="{")
    assert source.readings == 0


@pytest.mark.parametrize("endpoint", [COMPLETIONS, EMBEDDINGS])
def test_a_system_prompt_is_refused_where_requests_have_no_place_for_it(workshop: Workshop, endpoint: str) -> None:
    with pytest.raises(BadInput, match=f"--system has no place in requests to {endpoint}: leave it out"):
        workshop.submit([{"custom_id": "a", "method": "POST", "url": endpoint, "body": FOR_ALL}], system="Be brief.")
    assert nothing_is_stored(workshop)


def test_a_line_over_the_limit_is_rejected_and_the_next_one_runs(workshop: Workshop) -> None:
    rows = [{"prompt": "x" * 500}, {"prompt": "ok"}]
    batch = workshop.submitted(rows, max_line_bytes=100, **SKIP)
    assert [(bad.line, bad.code) for bad in workshop.store.rejected(batch.id)] == [(1, "line_too_long")]
    assert workshop.run(batch).state is BatchState.COMPLETED


# ---- the same batch again


def test_the_same_again_attaches_while_it_is_unfinished(workshop: Workshop) -> None:
    first = workshop.submit(questions(3))
    again = workshop.submit(questions(3))
    assert again.attached
    assert again.batch.id == first.batch.id
    assert list(workshop.objects.objects) == [first.batch.input_key]


def test_the_same_again_is_a_new_batch_when_the_first_has_ended(workshop: Workshop) -> None:
    first = workshop.submitted(questions(3))
    workshop.run(first)
    again = workshop.submit(questions(3))
    assert not again.attached
    assert again.batch.id != first.id


def test_new_makes_another_batch(workshop: Workshop) -> None:
    first = workshop.submit(questions(3))
    another = workshop.submit(questions(3), new=True)
    assert not another.attached
    assert another.batch.id != first.batch.id
    assert workshop.submit(questions(3)).batch.id == first.batch.id


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other"},
        {"defaults": {"temperature": 0.7}},
        {"cache": CacheMode.OFF},
        {"namespace": "mine"},
        {"pool": "gpu"},
        {"system": "Be brief."},
        {"shard_requests": 10},
        {"completion_window": 60},
    ],
)
def test_other_options_make_another_batch(workshop: Workshop, other: dict[str, Any]) -> None:
    first = workshop.submitted(questions(3))
    assert workshop.submitted(questions(3), **other).id != first.id


def test_other_content_of_the_same_size_makes_another_batch(workshop: Workshop) -> None:
    first = workshop.submitted([{"prompt": "a"}])
    assert workshop.submitted([{"prompt": "b"}]).id != first.id


def test_attaching_to_a_paused_batch_goes_on_with_it(workshop: Workshop) -> None:
    first = workshop.submitted(questions(3), pool="gpu")
    pause(workshop.services, first.id)
    again = workshop.submit(questions(3), pool="gpu")
    assert again.attached
    assert again.batch.state is BatchState.IN_PROGRESS
    assert again.batch.reason is None


def test_attaching_sends_what_was_never_queued(workshop_with: Any) -> None:
    workshop = workshop_with(window=1)
    first = workshop.submitted(questions(3), shard_requests=1, pool="gpu")
    attempt = workshop.store.claim(first.id, number=0, owner="x", lease=60)
    assert attempt is not None
    workshop.submit(questions(3), shard_requests=1, pool="gpu")
    assert [number for _, _, number in workshop.dispatcher.sent] == [0, 1, 2]


def test_a_batch_that_is_being_cancelled_is_not_attached_to(workshop: Workshop) -> None:
    first = workshop.submitted(questions(3))
    workshop.store.claim(first.id, number=0, owner="x", lease=60)
    assert cancel(workshop.services, first.id).state is BatchState.CANCELLING
    with pytest.raises(StateConflict, match="--new"):
        workshop.submit(questions(3))
    assert list(workshop.objects.objects) == [first.input_key]


def test_a_source_that_can_be_read_twice_is_not_uploaded_to_find_that_out(workshop: Workshop) -> None:
    content = jsonl(questions(3))
    first = submit_sources(workshop, MemorySource(content)).batch
    source = MemorySource(content)
    uploads = dict(workshop.objects.modified)
    assert submit_sources(workshop, source).batch.id == first.id
    assert source.readings == 1
    assert workshop.objects.modified == uploads


@pytest.mark.parametrize("how", [{"rereadable": False}, {"sized": False}])
def test_a_source_that_can_be_read_once_is_compared_after_reading(workshop: Workshop, how: dict[str, bool]) -> None:
    content = jsonl(questions(3))
    first = submit_sources(workshop, MemorySource(content)).batch
    again = submit_sources(workshop, MemorySource(content, **how))
    assert again.attached
    assert again.batch.id == first.id
    assert list(workshop.objects.objects) == [first.input_key]


def test_sources_with_a_missing_newline_are_recognised_too(workshop: Workshop) -> None:
    parts = [b'{"prompt":"a"}', b'{"prompt":"b"}']
    first = submit_sources(workshop, *map(MemorySource, parts)).batch
    sources = [MemorySource(part) for part in parts]
    again = submit_sources(workshop, *sources)
    assert again.attached
    assert again.batch.id == first.id
    assert [source.readings for source in sources] == [1, 1]


# ---- a submit that does not come to its end


def test_a_reading_that_breaks_off_leaves_nothing(workshop: Workshop) -> None:
    class Breaking(MemorySource):
        def chunks(self) -> Any:
            yield b'{"prompt":"a"}\n'
            raise BadInput("The file cannot be read any further.")

    with pytest.raises(BadInput, match="any further"):
        submit_sources(workshop, Breaking(b"", sized=False))
    assert nothing_is_stored(workshop)


@pytest.mark.parametrize("broken", [ServiceUnavailable("The database does not answer."), KeyboardInterrupt()])
def test_an_input_stays_when_nobody_knows_whether_the_batch_was_stored(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, broken: BaseException
) -> None:
    create = workshop.store.create

    def lost_reply(*args: Any) -> None:
        create(*args)
        raise broken

    monkeypatch.setattr(workshop.store, "create", lost_reply)
    with pytest.raises(type(broken)):
        workshop.submit(questions(1))
    (progress,) = workshop.store.list_batches()
    assert workshop.run(progress.batch).state is BatchState.COMPLETED


def test_a_rival_that_was_stored_in_the_meantime_is_the_one_that_stands(workshop: Workshop) -> None:
    class Racing(MemorySource):
        """While it is read the same content is submitted by somebody else."""

        def chunks(self) -> Any:
            yield from super().chunks()
            self.rival = submit_sources(workshop, MemorySource(self.pieces), pool="gpu").batch

    source = Racing(jsonl(questions(2)), rereadable=False)
    submission = submit_sources(workshop, source, pool="gpu")
    assert submission.attached
    assert submission.batch.id == source.rival.id
    assert list(workshop.objects.objects) == [source.rival.input_key]
    states = [status.state for status in workshop.store.shards(source.rival.id)]
    assert states == [ShardState.QUEUED]
