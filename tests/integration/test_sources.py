"""Files, pipes, standard input and S3 objects as input: plain, packed, missing and damaged."""

from __future__ import annotations

import gzip
import io
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from storage.local_objects import LocalObjects
from storage.s3_objects import S3Objects
from storage.sources import open_source
from synthgen.errors import BadInput
from synthgen.ports import ObjectStore, Source
from tests.services.s3 import S3Server

LINES = b"".join(b'{"prompt": "What is %d + %d?"}\n' % (number, number) for number in range(100_000))
ZSTD = zstandard.ZstdCompressor(write_checksum=True)  # as the zstd command does
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
PACKED = {
    "gzip": gzip.compress(LINES),
    "gzip of two members": gzip.compress(LINES[:999]) + gzip.compress(LINES[999:]),
    "gzip padded with zeros": gzip.compress(LINES) + bytes(512),
    "gzip of nothing": gzip.compress(b"") + gzip.compress(LINES),
    "zstd": ZSTD.compress(LINES),
    "zstd of two frames": ZSTD.compress(LINES[:999]) + ZSTD.compress(LINES[999:]),
    "zstd with skippable frames": SKIPPABLE_FRAME + ZSTD.compress(LINES) + SKIPPABLE_FRAME,
    "zstd of nothing": ZSTD.compress(b"") + ZSTD.compress(LINES) + ZSTD.compress(b""),
    "zstd without a checksum": zstandard.ZstdCompressor().compress(LINES),
}


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return LocalObjects(tmp_path / "objects")


@pytest.fixture
def s3_objects(s3_credentials: S3Server) -> S3Objects:
    return S3Objects(s3_credentials.bucket, secrets.token_hex(8), endpoint_url=s3_credentials.endpoint_url)


def file_with(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "input"
    path.write_bytes(content)
    return str(path)


def content_of(source: Source) -> bytes:
    return b"".join(source.chunks())


def test_a_plain_file_gives_its_bytes_and_their_number_and_can_be_read_again(
    tmp_path: Path, objects: ObjectStore
) -> None:
    source = open_source(file_with(tmp_path, LINES), objects)
    assert source.size == len(LINES)
    assert source.rereadable
    assert content_of(source) == LINES
    assert content_of(source) == LINES
    assert source.name.endswith("input")
    assert source.copy_to("key") is False


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED.keys())
def test_packed_content_is_unpacked_by_its_first_bytes_in_bounded_pieces(
    tmp_path: Path, objects: ObjectStore, packed: bytes
) -> None:
    source = open_source(file_with(tmp_path, packed), objects)
    pieces = list(source.chunks())
    assert b"".join(pieces) == LINES
    assert max(map(len, pieces)) <= 1 << 20
    assert source.size is None
    assert source.rereadable


@pytest.mark.parametrize("packed", [PACKED["gzip"], PACKED["zstd"]], ids=["gzip", "zstd"])
@pytest.mark.parametrize("missing", [1, 5, 1000])
def test_packed_content_that_ends_too_early_is_named(
    tmp_path: Path, objects: ObjectStore, packed: bytes, missing: int
) -> None:
    source = open_source(file_with(tmp_path, packed[:-missing]), objects)
    with pytest.raises(BadInput, match=r"input ends in the middle of its (gzip|zstd) content"):
        content_of(source)


@pytest.mark.parametrize("checksum", [True, False])
def test_zstd_of_two_frames_may_be_cut_anywhere_but_between_them(
    tmp_path: Path, objects: ObjectStore, checksum: bool
) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=checksum).compress(LINES[:999])
    for size in range(4, 2 * len(frame)):
        source = open_source(file_with(tmp_path, (frame + frame)[:size]), objects)
        if size == len(frame):
            assert content_of(source) == LINES[:999]
            continue
        with pytest.raises(BadInput, match="in the middle of its zstd content"):
            content_of(source)


@pytest.mark.parametrize("packed", [PACKED["gzip"], PACKED["zstd"]], ids=["gzip", "zstd"])
def test_damaged_packed_content_is_named(tmp_path: Path, objects: ObjectStore, packed: bytes) -> None:
    middle = len(packed) // 2
    damaged = packed[:middle] + bytes(byte ^ 255 for byte in packed[middle : middle + 64]) + packed[middle + 64 :]
    with pytest.raises(BadInput, match="input is damaged"):
        content_of(open_source(file_with(tmp_path, damaged), objects))


@pytest.mark.parametrize("pack", [gzip.compress, ZSTD.compress], ids=["gzip", "zstd"])
def test_a_small_file_that_unpacks_to_very_much_stays_in_small_pieces(
    tmp_path: Path, objects: ObjectStore, pack: Callable[[bytes], bytes]
) -> None:
    source = open_source(file_with(tmp_path, pack(bytes(64 << 20))), objects)
    sizes = [len(piece) for piece in source.chunks()]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"PK\x03\x04rest", "a zip archive"), (b"BZh91AY", "bzip2"), ('{"a": 1}'.encode("utf-16"), "UTF-16 text")],
)
def test_content_that_is_surely_no_json_lines_is_refused_by_its_kind(
    tmp_path: Path, objects: ObjectStore, content: bytes, kind: str
) -> None:
    with pytest.raises(BadInput, match=f"input is {kind}: give JSON lines"):
        open_source(file_with(tmp_path, content), objects)


def test_an_empty_file_gives_nothing(tmp_path: Path, objects: ObjectStore) -> None:
    source = open_source(file_with(tmp_path, b""), objects)
    assert content_of(source) == b""
    assert source.size == 0


def test_a_missing_file_a_folder_and_a_forbidden_one_are_told_apart(tmp_path: Path, objects: ObjectStore) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.jsonl: there is no such file"):
        open_source(str(tmp_path / "nowhere.jsonl"), objects)
    with pytest.raises(BadInput, match="it is a folder"):
        open_source(str(tmp_path), objects)


def test_a_file_without_permission_says_so(tmp_path: Path, objects: ObjectStore) -> None:
    path = file_with(tmp_path, LINES)
    Path(path).chmod(0)
    with not_as_root(), pytest.raises(BadInput, match="its permissions do not allow it"):
        open_source(path, objects)


@contextmanager
def not_as_root() -> Iterator[None]:
    """Root may read everything: be nobody for the moment."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("content", [LINES, PACKED["gzip"], PACKED["zstd"]], ids=["plain", "gzip", "zstd"])
def test_standard_input_is_read_once_and_stays_open(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(sys, "stdin", stdin)
    source = open_source("-", objects)
    assert (source.name, source.size, source.rereadable) == ("standard input", None, False)
    assert content_of(source) == LINES
    assert not stdin.buffer.closed


def test_a_named_pipe_is_read_once_like_standard_input(tmp_path: Path, objects: ObjectStore) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"prompt": "hello"}\n')
    os.close(writing)
    source = open_source(f"/dev/fd/{reading}", objects)
    assert (source.size, source.rereadable) == (None, False)
    assert content_of(source) == b'{"prompt": "hello"}\n'
    os.close(reading)


@pytest.mark.parametrize(
    "content", [LINES, PACKED["gzip"], PACKED["zstd"], b""], ids=["plain", "gzip", "zstd", "empty"]
)
def test_an_s3_object_is_a_source_like_a_file(s3_objects: S3Objects, content: bytes) -> None:
    s3_objects.put("uploads/questions", content)
    source = open_source(s3_objects.url("uploads/questions"), s3_objects)
    assert source.name == s3_objects.url("uploads/questions")
    assert source.rereadable
    assert content_of(source) == (LINES if content else b"")
    assert source.size == (len(content) if content in (LINES, b"") else None)


def test_a_plain_s3_object_is_copied_on_the_server(s3_objects: S3Objects) -> None:
    s3_objects.put("uploads/questions", LINES)
    source = open_source(s3_objects.url("uploads/questions"), s3_objects)
    assert content_of(source) == LINES
    assert source.copy_to("batches/b1/input.jsonl") is True
    assert s3_objects.get("batches/b1/input.jsonl") == LINES


def test_a_packed_s3_object_is_not_copied_because_its_content_is_another(s3_objects: S3Objects) -> None:
    s3_objects.put("uploads/questions.gz", PACKED["gzip"])
    source = open_source(s3_objects.url("uploads/questions.gz"), s3_objects)
    assert source.copy_to("batches/b1/input.jsonl") is False
    assert [entry.key for entry in s3_objects.list("batches/")] == []


def test_an_s3_object_can_be_read_into_a_store_on_disk(
    s3_objects: S3Objects, s3_credentials: S3Server, objects: ObjectStore
) -> None:
    s3_objects.put("uploads/questions", LINES)
    place = s3_objects.url("uploads/questions")
    source = open_source(place, objects, endpoint_url=s3_credentials.endpoint_url)
    assert content_of(source) == LINES
    assert source.copy_to("batches/b1/input.jsonl") is False


def test_an_s3_object_that_changes_after_it_was_opened_is_neither_read_nor_copied(s3_objects: S3Objects) -> None:
    s3_objects.put("uploads/questions", LINES)
    source = open_source(s3_objects.url("uploads/questions"), s3_objects)
    s3_objects.put("uploads/questions", LINES[:-7])
    with pytest.raises(BadInput, match="was changed while it was being read: submit it again"):
        content_of(source)
    with pytest.raises(BadInput, match="was changed while it was being read: submit it again"):
        source.copy_to("batches/b1/input.jsonl")
    s3_objects.delete(["uploads/questions"])
    with pytest.raises(BadInput, match="was changed"):
        source.copy_to("batches/b1/input.jsonl")


def test_a_missing_s3_object_or_bucket_or_key_is_one_sentence(s3_objects: S3Objects) -> None:
    with pytest.raises(BadInput, match="there is no such object"):
        open_source(s3_objects.url("none"), s3_objects)
    with pytest.raises(BadInput, match="There is no bucket for s3://no-such-bucket/key"):
        open_source("s3://no-such-bucket/key", s3_objects)
    for place in ("s3://bucket", "s3://bucket/", "s3:///key"):
        with pytest.raises(BadInput, match="name an object, s3://bucket/key"):
            open_source(place, s3_objects)
