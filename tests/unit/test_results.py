"""A batch's answers read back: in order, all or some of them, while it runs and after it ended early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from synthgen.batch import OnInvalid
from synthgen.control import cancel
from synthgen.errors import NotFound
from synthgen.response import NEVER_RAN, Reply
from synthgen.results import Which, show, stream_results, text_of, texts
from synthgen.run_shard import run_shard
from synthgen.states import BatchState
from synthgen.upkeep import move_on
from tests.workshop import BROKEN, REFUSED, WRONG_KEY, Workshop, error_codes, failing, ids, questions

Make = Callable[..., Workshop]


def lines(count: int) -> list[str]:
    return [f"line-{number}" for number in range(1, count + 1)]


# ---- in order


def test_results_are_in_input_order_however_the_shards_ended(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    for number in (2, 0, 1):
        run_shard(workshop.services, workshop.worker, batch.id, number=number)
    assert ids(workshop.results(batch)) == lines(6)


def test_a_piece_is_whole_lines(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))
    batch = workshop.submitted(questions(5), shard_requests=2)
    workshop.run(batch)
    for which in Which:
        for piece in stream_results(workshop.services, batch.id, which=which):
            assert piece.endswith(b"\n")


def test_answers_larger_than_the_pieces_of_the_store_come_as_whole_lines(workshop_with: Make) -> None:
    text = "x" * 100_000
    workshop = workshop_with(lambda request, number: Reply(b'{"choices":[{"text":"%s"}]}' % text.encode()))
    batch = workshop.submitted(questions(5))
    workshop.run(batch)
    assert len(list(workshop.objects.stream(next(workshop.objects.list(f"batches/{batch.id}/results/")).key))) > 5
    for piece in stream_results(workshop.services, batch.id):
        assert piece.endswith(b"\n")
    assert list(texts(stream_results(workshop.services, batch.id))) == [text] * 5


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Which.ALL, lines(6)),
        (Which.SUCCEEDED, ["line-1", "line-4", "line-6"]),
        (Which.FAILED, ["line-2", "line-3", "line-5"]),
    ],
)
def test_the_good_and_the_failed_can_be_read_apart(workshop_with: Make, which: Which, expected: list[str]) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED, "line-3": BROKEN, "line-5": REFUSED}))
    batch = workshop.submitted(questions(6), shard_requests=2)
    workshop.run(batch)
    assert ids(workshop.results(batch, which)) == expected


def test_of_a_running_batch_the_sealed_shards_are_read(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    run_shard(workshop.services, workshop.worker, batch.id, number=1)
    assert ids(workshop.results(batch)) == ["line-3", "line-4"]


def test_results_of_a_batch_that_does_not_exist_are_not_found(workshop: Workshop) -> None:
    with pytest.raises(NotFound):
        list(stream_results(workshop.services, "batch_of_nobody"))


# ---- following


def test_following_gives_every_line_once_and_in_order_as_shards_end(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    todo = [1, 0, 2]
    seen_before_waiting: list[int] = []
    found: list[dict[str, Any]] = []

    def work(_: float) -> None:
        seen_before_waiting.append(len(found))
        run_shard(workshop.services, workshop.worker, batch.id, number=todo.pop(0))

    for piece in stream_results(workshop.services, batch.id, follow=True, wait=work):
        found += [orjson.loads(line) for line in piece.splitlines()]
    assert ids(found) == lines(6)
    assert seen_before_waiting == [0, 0, 4]


def test_following_a_batch_that_has_ended_does_not_wait(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(3), shard_requests=2)
    workshop.run(batch)

    def never(_: float) -> None:
        raise AssertionError("it waited")

    pieces = stream_results(workshop.services, batch.id, follow=True, wait=never)
    assert sum(piece.count(b"\n") for piece in pieces) == 3


def test_following_ends_with_a_batch_that_is_cancelled(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(6), shard_requests=2)
    steps: list[Callable[[], object]] = [
        lambda: run_shard(workshop.services, workshop.worker, batch.id),
        lambda: cancel(workshop.services, batch.id),
    ]

    def work(_: float) -> None:
        steps.pop(0)()

    pieces = stream_results(workshop.services, batch.id, follow=True, wait=work)
    found = [orjson.loads(line) for piece in pieces for line in piece.splitlines()]
    assert ids(found) == lines(6)
    assert error_codes(found) == [None, None, *["batch_cancelled"] * 4]


# ---- what never ran


def test_lines_of_shards_that_never_began_are_made_from_the_input(workshop: Workshop) -> None:
    rows = [*questions(2), b"garbage", {"prompt": "q", "custom_id": "mine"}, b"", {"prompt": "r", "custom_id": "mine"}]
    batch = workshop.submitted(rows, shard_requests=2, on_invalid=OnInvalid.SKIP)
    run_shard(workshop.services, workshop.worker, batch.id)
    cancel(workshop.services, batch.id)
    results = workshop.results(batch)
    assert ids(results) == ["line-1", "line-2", "mine"]
    never = results[2]
    assert never["response"] is None
    assert never["error"] == {"code": "batch_cancelled", "message": NEVER_RAN["batch_cancelled"]}
    assert (never["synthgen"]["line"], never["synthgen"]["attempts"]) == (4, 0)
    assert ids(workshop.results(batch, Which.SUCCEEDED)) == ["line-1", "line-2"]
    assert ids(workshop.results(batch, Which.FAILED)) == ["mine"]


def test_rejected_lines_are_read_for_the_shards_own_lines_only(workshop: Workshop) -> None:
    rows = [row for number in range(1, 11) for row in (*questions(1, start=number), b"garbage")]
    batch = workshop.submitted(rows, shard_requests=2, on_invalid=OnInvalid.SKIP)
    cancel(workshop.services, batch.id)
    rejected, read = workshop.store.rejected, []

    def counted(*args: Any, **options: Any) -> Any:
        for line in rejected(*args, **options):
            read.append(line.line)
            yield line

    workshop.store.rejected = counted  # type: ignore[method-assign]
    assert len(workshop.results(batch)) == 10
    assert len(read) == len(set(read))


def test_while_a_batch_expires_its_lines_already_say_so(workshop: Workshop) -> None:
    """One shard is still held by a worker, so the batch is not expired yet; the other never begins."""
    batch = workshop.submitted(questions(4), shard_requests=2, completion_window=60)
    workshop.store.claim(batch.id, number=0, owner="elsewhere", lease=3600)
    workshop.clock.advance(61)
    move_on(workshop.services, workshop.store.get(batch.id))
    assert workshop.store.get(batch.id).state is BatchState.IN_PROGRESS
    assert error_codes(workshop.results(batch)) == ["batch_expired"] * 2


def test_lines_of_a_batch_that_is_cancelled_while_they_are_read_say_so(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(4), shard_requests=2, completion_window=60)
    run_shard(workshop.services, workshop.worker, batch.id)
    pieces = stream_results(workshop.services, batch.id)
    found = next(pieces)
    cancel(workshop.services, batch.id)
    found += b"".join(pieces)
    assert error_codes(map(orjson.loads, found.splitlines())) == [None, None, *["batch_cancelled"] * 2]


@pytest.mark.parametrize("input_is", [None, b"", b"{}\n", b'{"prompt": "another"}\n' * 9])
def test_without_their_input_lines_that_never_ran_are_as_many_as_were_counted(
    workshop: Workshop, input_is: bytes | None
) -> None:
    rows = [*questions(2), b"garbage", {"prompt": "q"}, b"", {"prompt": "r"}, *questions(2, start=7)]
    batch = workshop.submitted(rows, shard_requests=2, on_invalid=OnInvalid.SKIP)
    run_shard(workshop.services, workshop.worker, batch.id)
    workshop.objects.delete([batch.input_key])
    if input_is is not None:
        workshop.objects.put(batch.input_key, input_is)
    cancel(workshop.services, batch.id)
    results = workshop.results(batch)
    assert error_codes(results) == [None, None, *["batch_cancelled"] * 4]
    lines = [line["synthgen"]["line"] for line in results]
    assert lines == sorted(set(lines))
    assert 3 not in lines
    assert ids(results[:2]) == ["line-1", "line-2"]
    if input_is is None:
        assert ids(results[2:]) == [None] * 4


def test_a_raw_row_that_never_ran_keeps_its_id(workshop: Workshop) -> None:
    batch = workshop.submitted([{"q": "a", "custom_id": "x"}, {"q": "b"}], prompt="Say {q}")
    cancel(workshop.services, batch.id)
    assert ids(workshop.results(batch)) == ["x", "line-2"]


# ---- one request


def test_one_request_is_shown_with_its_input_and_its_answer(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"b": REFUSED}))
    rows = [{"prompt": "one", "custom_id": "a"}, b"garbage", {"prompt": "two", "custom_id": "b"}, *questions(3)]
    batch = workshop.submitted(rows, shard_requests=2, on_invalid=OnInvalid.SKIP)
    workshop.run(batch)
    for found in (show(workshop.services, batch.id, line=3), show(workshop.services, batch.id, custom_id="b")):
        assert orjson.loads(found.input_line) == rows[2]
        assert found.request is not None
        assert found.request.body["messages"][0]["content"] == "two"
        assert found.stored.row.line == 3
        assert found.output_line["custom_id"] == "b"
        assert found.output_line["synthgen"]["error_code"] == "context_length_exceeded"
    last = show(workshop.services, batch.id, line=6)
    assert orjson.loads(last.input_line) == {"prompt": "question 3"}
    assert text_of(last.output_line) == "re: question 3"


@pytest.mark.parametrize("what", [{"line": 2}, {"line": 99}, {"custom_id": "nobody"}])
def test_what_has_no_answer_is_not_found(workshop: Workshop, what: dict[str, Any]) -> None:
    batch = workshop.submitted([{"prompt": "a"}, b"garbage"], on_invalid=OnInvalid.SKIP)
    workshop.run(batch)
    with pytest.raises(NotFound):
        show(workshop.services, batch.id, **what)


def test_a_request_of_a_running_shard_has_no_answer_yet(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": WRONG_KEY}))
    batch = workshop.submitted(questions(2))
    workshop.run(batch)
    with pytest.raises(NotFound):
        show(workshop.services, batch.id, line=1)


# ---- just the text

RESPONSE_REASONING = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "well"}], "summary": []}


def part(text: str) -> dict[str, str]:
    return {"type": "output_text", "text": text}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "hi"}}]}, "hi"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, ""),
        ({"choices": [{"text": "hi"}]}, "hi"),
        ({"choices": [{"text": ""}]}, ""),
        ({"choices": []}, ""),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}}]}, "hi"),
        ({"choices": [{"message": {"content": [{"type": "thinking", "text": "hm"}, {"type": "text"}, None]}}]}, ""),
        ({"output": [RESPONSE_REASONING, {"type": "message", "content": [part("h"), part("i")]}]}, "hi"),
        ({"output": [RESPONSE_REASONING, {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, ""),
        ({"output": []}, ""),
        ({"data": [{"embedding": [0.5, 1.0]}]}, "[[0.5,1.0]]"),
    ],
)
def test_the_text_of_each_kind_of_answer(body: dict[str, Any], text: str) -> None:
    assert text_of({"response": {"status_code": 200, "body": body}, "error": None, "synthgen": {}}) == text


def test_texts_are_one_for_each_line_and_empty_for_failures(workshop_with: Make) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED, "line-4": BROKEN}))
    batch = workshop.submitted(questions(5), shard_requests=2)
    workshop.run(batch)
    assert list(texts(stream_results(workshop.services, batch.id))) == [
        "re: question 1",
        "",
        "re: question 3",
        "",
        "re: question 5",
    ]
