"""Files appear whole or not at all, and never over what is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from cli.collecting import collect
from cli.output_files import CannotWrite, batch_of_file, check_contents, check_places, writing
from storage.sources import open_source
from synthgen.batch import Batch
from synthgen.errors import BadInput
from synthgen.ports import say_nothing
from tests.workshop import REFUSED, Workshop, failing, questions


def answered(workshop: Workshop, count: int = 3, **options: object) -> Batch:
    return workshop.run(workshop.submitted(questions(count), **options))


def written(workshop: Workshop, batch: Batch, output: Path, errors: Path | None = None) -> list[dict[str, object]]:
    collect(workshop.services, batch, str(output), str(errors) if errors else None, say_nothing)
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def interrupted_write(path: Path) -> None:
    with writing(str(path)) as file:
        file.write(b"new, but only half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing_at_the_file_that_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with writing(str(link)) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    with writing("/dev/null") as file:
        file.write(b"gone")
    assert Path("/dev/null").is_char_device()


def test_a_pipe_that_a_shell_made_is_written_to() -> None:
    reader, writer = os.pipe()
    place = f"/dev/fd/{writer}"  # -o >(zstd > answers.zst)
    check_places(place, None)
    with writing(place) as file:
        file.write(b"answers")
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"answers"


def test_what_is_no_file_needs_no_folder_that_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("/dev") and allowed(path, mode))
    check_places("/dev/null", "/dev/null")


def test_what_may_not_be_written_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    for place in (tmp_path / "a", Path("/dev/null")):
        with pytest.raises(BadInput, match="the permissions of"):
            check_places(str(place))


def test_the_answers_of_a_batch_may_be_written_again(workshop: Workshop, tmp_path: Path) -> None:
    batch, path = answered(workshop), tmp_path / "out.jsonl"
    written(workshop, batch, path)
    assert batch_of_file(path) == batch.id
    check_contents(workshop.services, batch, str(path))


def test_newer_answers_to_the_same_questions_may_replace_older_ones(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(workshop, answered(workshop), path)
    check_contents(workshop.services, answered(workshop), str(path))


def test_the_answers_of_another_batch_are_kept(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(workshop, answered(workshop), path)
    other = answered(workshop, model="another")
    with pytest.raises(BadInput, match="--force"):
        check_contents(workshop.services, other, str(path))


def test_answers_of_a_batch_that_is_gone_are_kept(workshop: Workshop, tmp_path: Path) -> None:
    path, batch = tmp_path / "out.jsonl", answered(workshop)
    written(workshop, batch, path)
    workshop.store.delete(batch.id)
    with pytest.raises(BadInput, match=batch.id):
        check_contents(workshop.services, answered(workshop), str(path))


@pytest.mark.parametrize(
    "content", [b'{"prompt": "an input"}\n', b"text", b"[1]\n", b"7\n", b'{"id": 3}\n', b'{"id": "req_1"}\n', b"\xff\n"]
)
def test_a_file_that_is_not_ours_is_kept(workshop: Workshop, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="holds no answers"):
        check_contents(workshop.services, None, str(path))


def test_an_empty_file_and_a_missing_one_and_standard_output_may_be_written(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for packed in ("empty.gz", "empty.zst"):
        with writing(str(tmp_path / packed)):
            pass
    places = (*map(str, tmp_path.iterdir()), str(tmp_path / "none"), "-", None)
    check_places(*places)
    check_contents(workshop.services, answered(workshop), *places)


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="same file"):
        check_places(str(tmp_path / "a"), str(tmp_path / "." / "a"))


@pytest.mark.parametrize(("ending", "magic"), [(".gz", b"\x1f\x8b"), (".zst", b"\x28\xb5\x2f\xfd")])
def test_answers_are_packed_as_the_name_says_and_known_again(
    workshop: Workshop, tmp_path: Path, ending: str, magic: bytes
) -> None:
    batch, path = answered(workshop), tmp_path / f"out.jsonl{ending}"
    collect(workshop.services, batch, str(path), None, say_nothing)
    check_places(str(path))
    check_contents(workshop.services, batch, str(path))
    assert path.read_bytes().startswith(magic)
    assert batch_of_file(path) == batch.id
    source = open_source(str(path), workshop.objects)
    assert [orjson.loads(line)["custom_id"] for line in b"".join(source.chunks()).splitlines()] == [
        "line-1",
        "line-2",
        "line-3",
    ]
    path.write_bytes(magic + b"not really")
    assert batch_of_file(path) is None


@pytest.mark.parametrize("name", ["out.csv", "out.JSON", "out.parquet", "out.csv.gz", "out.zip"])
def test_a_name_that_promises_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="answers are JSON lines"):
        check_places(str(tmp_path / name))


def test_a_url_is_refused_with_the_way_to_get_answers_there() -> None:
    with pytest.raises(BadInput, match=r"pipe 'synthgen results BATCH'.*aws s3 cp - s3://bucket/out"):
        check_places("s3://bucket/out.jsonl")


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    path, link = tmp_path / "questions.jsonl", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    for output, errors in ((path, None), (tmp_path / "answers", link)):
        with pytest.raises(BadInput, match="is an input of this batch"):
            check_places(str(output), errors and str(errors), inputs=("-", "s3://bucket/key", str(path)))
    check_places(str(tmp_path / "answers"), "/dev/null", inputs=("/dev/null", str(path)))


def test_a_folder_that_vanished_during_the_work_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotWrite, match=r"Cannot write .*: there is no folder .*none any more"),
        writing(str(tmp_path / "none" / "a")),
    ):
        pass


def test_a_reader_that_goes_away_is_not_taken_for_a_full_disk() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), writing(f"/dev/fd/{writer}") as file:
        file.write(b"answers")
    os.close(writer)


def test_a_folder_that_is_missing_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        check_places(str(tmp_path / "none" / "a"), None)
    with pytest.raises(BadInput, match="it is a folder"):
        check_places(str(tmp_path))


def test_without_an_errors_file_every_request_has_its_line(workshop_with: object, tmp_path: Path) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))  # type: ignore[operator]
    lines = written(workshop, answered(workshop), tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == ["line-1", "line-2", "line-3"]


def test_an_errors_file_takes_failed_rows_and_rejected_lines(workshop_with: object, tmp_path: Path) -> None:
    workshop = workshop_with(failing({"line-2": REFUSED}))  # type: ignore[operator]
    batch = workshop.run(workshop.submitted([*questions(3), b"{broken"], on_invalid="skip"))
    lines = written(workshop, batch, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    assert [line["custom_id"] for line in lines] == ["line-1", "line-3"]
    failed, rejected = [orjson.loads(line) for line in (tmp_path / "errors.jsonl").read_bytes().splitlines()]
    assert failed["custom_id"] == "line-2"
    assert (rejected["line"], rejected["code"], rejected["batch_id"]) == (4, "invalid_json_line", batch.id)


def test_a_file_of_rejected_lines_alone_is_known_as_ours(workshop: Workshop, tmp_path: Path) -> None:
    batch = workshop.run(workshop.submitted([*questions(1), b"{broken"], on_invalid="skip"))
    written(workshop, batch, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    assert batch_of_file(tmp_path / "errors.jsonl") == batch.id
