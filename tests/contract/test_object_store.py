"""What every object store keeps: on local disk, on a real S3 server, and in memory for unit tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.local_objects import LocalObjects
from storage.s3_objects import S3Objects
from synthgen.errors import NotFound
from synthgen.ports import ObjectStore
from tests.fakes.object_store import FakeObjects
from tests.services.s3 import S3Server

MIB = 1 << 20


@pytest.fixture(scope="module")
def s3_objects(s3_server: S3Server) -> Iterator[S3Objects]:
    """One client for all tests: making one takes longer than most of them."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_server.environ().items():
            environment.setenv(name, value)
        yield S3Objects(s3_server.bucket, endpoint_url=s3_server.endpoint_url, first_part=5 * MIB)


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return FakeObjects()
    if request.param == "local":
        return LocalObjects(tmp_path / "objects")
    objects: S3Objects = request.getfixturevalue("s3_objects")
    objects.prefix = f"{secrets.token_hex(8)}/"
    return objects


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_what_is_put_is_got_back(store: ObjectStore) -> None:
    store.put("batches/b1/manifest.json", b"{}\n")
    assert store.get("batches/b1/manifest.json") == b"{}\n"


def test_putting_again_replaces_the_whole_object(store: ObjectStore) -> None:
    store.put("a", b"a long first version")
    store.put("a", b"short")
    assert store.get("a") == b"short"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert b"".join(store.stream("empty")) == b""
    assert [(entry.key, entry.size) for entry in store.list("")] == [("empty", 0)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, b"0123456789"), (3, 7, b"3456"), (7, None, b"789"), (0, 1, b"0"), (8, 99, b"89"), (4, 4, b"")],
)
def test_a_range_is_cut_like_a_slice(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    store.put("digits", b"0123456789")
    assert store.get("digits", start=start, end=end) == expected


@pytest.mark.parametrize("start", [10, 25])
def test_a_range_that_begins_at_the_end_or_beyond_is_empty(store: ObjectStore, start: int) -> None:
    store.put("digits", b"0123456789")
    assert store.get("digits", start=start) == b""
    assert store.get("digits", start=start, end=start + 5) == b""


def test_a_missing_object_is_not_found_however_it_is_read(store: ObjectStore) -> None:
    store.put("there/one", b"1")
    with pytest.raises(NotFound, match="no object"):
        store.get("there/two")
    with pytest.raises(NotFound):
        store.get("there/two", start=3, end=3)
    with pytest.raises(NotFound):
        store.get("there")
    with pytest.raises(NotFound):
        list(store.stream("there/one/more"))


def test_a_large_object_streams_in_bounded_pieces_and_is_the_same(store: ObjectStore) -> None:
    content = secrets.token_bytes(MIB) * 3 + b"tail"
    store.put("large", content)
    pieces = list(store.stream("large"))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= MIB


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 12 * MIB + 7])
def test_a_committed_upload_holds_all_that_was_written(store: ObjectStore, size: int) -> None:
    content = (secrets.token_bytes(1009) * (size // 1009 + 1))[:size]
    with store.writer("upload") as upload:
        for start in range(0, size, 700_001):
            upload.write(content[start : start + 700_001])
        upload.commit()
    assert store.get("upload") == content


@pytest.mark.parametrize("size", [10, 12 * MIB])
def test_an_upload_is_invisible_until_it_is_committed(store: ObjectStore, size: int) -> None:
    store.put("upload", b"before")
    with store.writer("upload") as upload:
        upload.write(bytes(size))
        assert store.get("upload") == b"before"
        assert keys(store) == ["upload"]
        upload.commit()
    assert len(store.get("upload")) == size


@pytest.mark.parametrize("size", [10, 12 * MIB])
def test_leaving_an_upload_without_commit_leaves_nothing(store: ObjectStore, size: int) -> None:
    with store.writer("upload") as upload:
        upload.write(bytes(size))
    assert keys(store) == []
    assert store.sweep_uploads(older_than=-60) == 0


def test_an_error_inside_an_upload_aborts_it_and_comes_out(store: ObjectStore) -> None:
    with pytest.raises(KeyError, match="mine"), store.writer("upload") as upload:  # noqa: PT012
        upload.write(bytes(6 * MIB))
        raise KeyError("mine")
    assert keys(store) == []
    assert store.sweep_uploads(older_than=-60) == 0


def test_an_aborted_upload_leaves_what_was_there_before(store: ObjectStore) -> None:
    store.put("upload", b"before")
    with store.writer("upload") as upload:
        upload.write(b"after")
        upload.abort()
    assert store.get("upload") == b"before"


def test_sweeping_removes_old_uploads_and_spares_young_ones_and_objects(store: ObjectStore) -> None:
    store.put("batches/b1/input.jsonl", b"1")
    context = store.writer("batches/b2/input.jsonl")
    upload = context.__enter__()
    upload.write(bytes(6 * MIB))
    assert store.sweep_uploads(older_than=3_600) == 0
    assert store.sweep_uploads(older_than=-60) == 1
    assert store.sweep_uploads(older_than=-60) == 0
    assert keys(store) == ["batches/b1/input.jsonl"]
    context.__exit__(None, None, None)


def test_listing_gives_keys_in_order_with_size_and_time(store: ObjectStore) -> None:
    names = ["b/2", "a/b", "a/b-c", "b/10", "a/B", "c"]
    for name in names:
        store.put(name, name.encode())
    entries = list(store.list(""))
    assert [entry.key for entry in entries] == sorted(names)
    assert all(entry.size == len(entry.key) for entry in entries)
    assert all(abs(datetime.now(UTC) - entry.modified) < timedelta(hours=1) for entry in entries)


def test_a_prefix_is_matched_by_characters_not_by_folders(store: ObjectStore) -> None:
    for name in ["batches/b1/x", "batches/b12/x", "batches/b2/x", "other"]:
        store.put(name, b"")
    assert keys(store, "batches/b1") == ["batches/b1/x", "batches/b12/x"]
    assert keys(store, "batches/b1/") == ["batches/b1/x"]
    assert keys(store, "batches/") == ["batches/b1/x", "batches/b12/x", "batches/b2/x"]
    assert keys(store, "none/such/") == []


def test_listing_and_deleting_go_beyond_one_page(store: ObjectStore) -> None:
    names = [f"many/{number:05d}" for number in range(1_005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert keys(store, "many/") == names
    store.delete(iter(names))
    assert keys(store) == []


def test_deleting_passes_over_what_is_missing(store: ObjectStore) -> None:
    store.put("a/one", b"1")
    store.put("a/two", b"2")
    store.delete(["a/none", "a/one", "b/none"])
    assert keys(store) == ["a/two"]
    store.delete([])


def test_unusual_names_survive(store: ObjectStore) -> None:
    name = "batches/müller & söhne/ein name? 100%25 +#=.jsonl"
    store.put(name, b"1")
    assert keys(store, "batches/mü") == [name]
    assert store.get(name) == b"1"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../outside", "a/../../outside", "a//b", "./a", "a/"])
def test_a_key_that_could_lead_out_of_the_store_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        store.put(key, b"")


def test_the_place_of_an_object_is_told_to_people(store: ObjectStore) -> None:
    assert store.url("batches/b1/input.jsonl").endswith("batches/b1/input.jsonl")
