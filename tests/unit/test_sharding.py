"""Lines out of chunks, shards out of lines, repeats among millions; each against a slow and obvious reference."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.batch import SHARED, Shard
from synthgen.sharding import (
    Marks,
    RepeatIndex,
    ShardCutter,
    batch_of,
    default_shards,
    flatten_marks,
    id_digest,
    input_key,
    manifest_key,
    mark_repeats,
    result_key,
    split_lines,
)

ROOMY = 1_000_000

texts = st.text(alphabet="ab\r\n ", max_size=60).map(str.encode)


def cut(content: bytes, borders: list[int]) -> list[bytes]:
    places = sorted({min(border, len(content)) for border in borders})
    return [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]


def naive(content: bytes) -> list[tuple[bytes, int]]:
    """Each line without its line end, and its length with it."""
    lines = content.split(b"\n")
    sized = [(line, len(line) + 1) for line in lines[:-1]]
    if lines[-1]:
        sized.append((lines[-1], len(lines[-1])))
    return [(line.removesuffix(b"\r"), size) for line, size in sized]


def flat(pieces: Iterator[list[tuple[bytes, int]]]) -> list[tuple[bytes, int]]:
    return [line for piece in pieces for line in piece]


@given(texts, st.lists(st.integers(0, 60), max_size=8))
def test_lines_are_the_same_wherever_the_chunks_end(content: bytes, borders: list[int]) -> None:
    assert flat(split_lines(cut(content, borders), max_bytes=ROOMY)) == naive(content)


@given(texts, st.lists(st.integers(0, 60), max_size=8), st.integers(1, 12))
def test_a_line_over_the_limit_stays_over_it_and_all_others_come_whole(
    content: bytes, borders: list[int], limit: int
) -> None:
    found = flat(split_lines(cut(content, borders), max_bytes=limit))
    expected = naive(content)
    assert [size for _, size in found] == [size for _, size in expected]
    for (line, _), (whole, _) in zip(found, expected, strict=True):
        if len(whole) <= limit:
            assert line == whole
        else:
            assert len(line) > limit


def test_a_line_far_over_the_limit_is_never_held_whole() -> None:
    chunk, count, limit = b"x" * 1_000, 500, 2_000
    chunks = [*([chunk] * count), b"tail\nnext"]
    found = flat(split_lines(chunks, max_bytes=limit))
    (line, size), following = found[0], found[1:]
    assert limit < len(line) <= limit + 2 + len(chunk)
    assert size == count * len(chunk) + len(b"tail\n")
    assert following == [(b"next", 4)]


def test_an_endless_last_line_is_cut_as_well() -> None:
    ((line, size),) = flat(split_lines([b"x" * 1_000] * 100, max_bytes=50))
    assert 50 < len(line) <= 52
    assert size == 100_000


def test_lines_come_as_soon_as_their_chunk_has() -> None:
    pulled = []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"a\nb", b"c\n", b"d"):
            pulled.append(chunk)
            yield chunk

    lines = split_lines(chunks(), max_bytes=ROOMY)
    assert next(lines) == [(b"a", 2)]
    assert pulled == [b"a\nb"]
    assert next(lines) == [(b"bc", 3)]


# ---- shards

lines_of_a_file = st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=60)


def cut_shards(lines: list[tuple[int, bool]], *, max_requests: int, max_bytes: int) -> list[Shard]:
    cutter = ShardCutter(max_requests=max_requests, max_bytes=max_bytes)
    for size, is_request in lines:
        cutter.add(size, is_request=is_request)
    return cutter.finish()


@given(lines_of_a_file, st.integers(1, 8), st.integers(1, 200))
def test_shards_are_in_order_apart_from_each_other_and_hold_every_request_once(
    lines: list[tuple[int, bool]], max_requests: int, max_bytes: int
) -> None:
    shards = cut_shards(lines, max_requests=max_requests, max_bytes=max_bytes)
    starts = [sum(size for size, _ in lines[:index]) for index in range(len(lines) + 1)]
    held: list[int] = []
    for number, shard in enumerate(shards):
        own = range(shard.first_line, shard.first_line + shard.lines)
        assert shard.number == number
        assert (shard.start, shard.end) == (starts[own.start - 1], starts[own.stop - 1])
        requests = [line for line in own if lines[line - 1][1]]
        assert shard.requests == len(requests) >= 1
        held += requests
    assert held == [line for line, (_, is_request) in enumerate(lines, start=1) if is_request]
    assert all(one.end <= other.start for one, other in itertools.pairwise(shards))


@given(lines_of_a_file, st.integers(1, 8), st.integers(1, 200))
def test_no_shard_is_over_the_limits_unless_one_line_alone_is(
    lines: list[tuple[int, bool]], max_requests: int, max_bytes: int
) -> None:
    for shard in cut_shards(lines, max_requests=max_requests, max_bytes=max_bytes):
        assert shard.requests <= max_requests
        assert shard.end - shard.start <= max_bytes or shard.lines == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.integers(50, 200))
def test_a_shard_ends_only_where_the_next_line_would_not_fit(
    sizes: list[int], max_requests: int, max_bytes: int
) -> None:
    shards = cut_shards([(size, True) for size in sizes], max_requests=max_requests, max_bytes=max_bytes)
    assert shards[0].start == 0
    assert shards[-1].end == sum(sizes)
    for shard, following in itertools.pairwise(shards):
        assert following.start == shard.end
        next_size = sizes[following.first_line - 1]
        assert shard.requests == max_requests or shard.end - shard.start + next_size > max_bytes


def test_long_stretches_of_bad_lines_join_no_shard() -> None:
    garbage = [(10, False)] * 1_000
    shards = cut_shards([*garbage, (10, True), *garbage, (10, True), *garbage], max_requests=500, max_bytes=100)
    assert [shard.requests for shard in shards] == [1, 1]
    assert all(shard.lines <= 10 for shard in shards)


def test_finishing_twice_changes_nothing_and_an_empty_file_has_no_shards() -> None:
    cutter = ShardCutter(max_requests=2, max_bytes=100)
    assert cutter.finish() == []
    cutter.add(10, is_request=True)
    assert cutter.finish() == cutter.finish() == [Shard(0, 0, 10, 1, 1, 1)]
    assert (cutter.position, cutter.line) == (10, 1)


# ---- repeats


@given(st.lists(st.integers(0, 12), max_size=60))
def test_repeats_are_the_groups_of_equal_values_in_line_order(values: list[int]) -> None:
    index = RepeatIndex()
    groups = defaultdict(list)
    for line, value in enumerate(values, start=1):
        index.add(id_digest(str(value)), line)
        groups[value].append(line)
    assert sorted(map(list, index.repeats())) == sorted(lines for lines in groups.values() if len(lines) > 1)


def test_an_id_that_is_no_valid_unicode_still_has_a_digest() -> None:
    assert id_digest("\ud800") != id_digest("\ud801")


def marked(groups: list[tuple[list[int], bool]], shards: list[Shard]) -> list[tuple[tuple[int, int], ...]]:
    marks = Marks(max(shard.first_line + shard.lines - 1 for shard in shards))
    for group, deterministic in groups:
        mark_repeats(marks, group, deterministic=deterministic)
    return [marks.of(shard) for shard in shards]


def test_the_kth_of_equal_lines_asks_for_the_kth_sample() -> None:
    shards = [Shard(0, 0, 30, 1, 3, 3), Shard(1, 30, 60, 4, 3, 3)]
    assert marked([([1, 3, 6], False)], shards) == [((3, 2),), ((6, 3),)]


def test_equal_deterministic_lines_all_share() -> None:
    shards = [Shard(0, 0, 30, 1, 3, 3), Shard(1, 30, 60, 4, 3, 3)]
    assert marked([([2, 5], True), ([3, 4], False)], shards) == [((2, SHARED),), ((4, 2), (5, SHARED))]


def test_a_batch_without_repeats_has_no_marks() -> None:
    assert marked([], [Shard(0, 0, 30, 1, 3, 3)]) == [()]


def test_numbers_of_lines_come_in_line_order() -> None:
    marks = Marks(5)
    assert list(marks) == []
    marks.set(5, SHARED)
    marks.set(2, 3)
    assert list(marks) == [(2, 3), (5, SHARED)]


def test_marks_are_stored_as_one_list_of_numbers() -> None:
    assert flatten_marks([(3, 2), (5, SHARED)]) == [3, 2, 5, -1]


# ---- names


def test_a_key_tells_its_batch_and_other_keys_tell_none() -> None:
    for key in (input_key("batch_1"), result_key("batch_1", 7, 99), manifest_key("batch_1")):
        assert batch_of(key) == "batch_1"
    for key in ("other/batch_1/input.jsonl", "batches/stray", "batch_1"):
        assert batch_of(key) is None


def test_results_sort_like_their_shards_and_two_attempts_never_share_a_name() -> None:
    keys = [result_key("b", number, 1) for number in (0, 9, 10, 99_999)]
    assert keys == sorted(keys)
    assert result_key("b", 1, 23) != result_key("b", 1, 24)


@pytest.mark.parametrize(
    ("in_flight", "shard_requests", "shards"), [(1, 500, 2), (256, 500, 3), (1_000, 500, 5), (9, 0, 19), (10**6, 1, 64)]
)
def test_enough_shards_run_at_once_to_fill_the_engine_twice(in_flight: int, shard_requests: int, shards: int) -> None:
    assert default_shards(in_flight, shard_requests) == shards
