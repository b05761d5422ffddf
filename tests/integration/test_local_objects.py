"""What only the store on disk has to keep: its folder, its unfinished files, and what a full or closed disk says."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.local_objects import LocalObjects
from storage.objects import open_objects
from synthgen.errors import BadSetting


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    store = open_objects(str(tmp_path / "a" / "b"))
    store.put("x", b"1")
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"1"


def test_a_folder_that_cannot_be_made_is_one_sentence_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match="SYNTHGEN_STORAGE_URL"):
        open_objects(str(tmp_path / "file" / "folder"))


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "s3://", "s3:///prefix"])
def test_a_storage_url_that_is_neither_folder_nor_s3_is_refused(url: str) -> None:
    with pytest.raises(BadSetting, match="give a folder or s3://bucket/prefix"):
        open_objects(url)


def test_the_last_object_takes_its_folders_along(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    store.put("batches/b1/results/1", b"")
    store.put("batches/b2/input", b"")
    store.delete(["batches/b1/results/1"])
    assert [path.name for path in tmp_path.rglob("*")] == ["batches", "b2", "input"]


def test_an_upload_that_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    killed = store.writer("batches/b1/input.jsonl")
    upload = killed.__enter__()
    upload.write(b"half")
    assert list(store.list("")) == []
    assert store.sweep_uploads(older_than=60) == 0
    assert store.sweep_uploads(older_than=-60) == 1
    killed.__exit__(None, None, None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_name_kept_for_unfinished_uploads_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unfinished uploads"):
        LocalObjects(tmp_path).put("batches/.upload-1", b"")


def test_keys_are_listed_in_the_order_of_their_characters_not_of_folders(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    for name in ["a/b", "a-b", "a!", "a/b-c", "a0"]:
        store.put(name, b"")
    assert [entry.key for entry in store.list("")] == ["a!", "a-b", "a/b", "a/b-c", "a0"]
