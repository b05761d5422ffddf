"""Where answers are written: whole files or none, and never over something that is not ours."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from storage.packing import PACKED, first_line, packed
from synthgen.batch import Batch
from synthgen.errors import BadInput, NotFound, SynthgenError
from synthgen.ports import Services

STDOUT: Final = "-"
STDIN: Final = "-"
_OTHER_FORMATS: Final = (
    ".json",
    *(".csv", ".tsv", ".xlsx"),
    *(".parquet", ".arrow", ".feather", ".avro"),
    *(".zip", ".bz2", ".xz"),
)
_ID_PREFIX: Final = "batch_req_"


class CannotWrite(SynthgenError):
    """The answers are there, but not their file: the disk is full, the folder went away."""


def check_places(*places: str | None, inputs: Iterable[str] = ()) -> None:
    """Before any work: the folders are there, and no place is another one or one of ``inputs``. Raises BadInput."""
    named = [place for place in places if place is not None and place != STDOUT]
    for place in named:
        _check_name(place)
    paths = [Path(place) for place in named]
    files = [path for path in paths if not _is_no_file(path)]
    if len({path.resolve() for path in files}) < len(files):
        raise BadInput("-o and --errors name the same file: give each its own.")
    read = {_real_path(place) for place in inputs}
    for path in files:
        if path.resolve() in read:
            raise BadInput(f"{path} is an input of this batch: write its answers to another file.")
    for path in paths:
        folder = path.resolve().parent
        if path.is_dir() or (path in files and not folder.is_dir()):
            raise BadInput(f"Cannot write {path}: {'it is a folder' if path.is_dir() else f'no folder {folder}'}.")
        opened = folder if path in files else path
        if not os.access(opened, os.W_OK):
            raise BadInput(f"Cannot write {path}: the permissions of {opened} do not allow it.")


def _check_name(place: str) -> None:
    """What a name promises is what the file holds."""
    if "://" in place:
        raise BadInput(
            f"Cannot write {place}: answers go to a file; pipe 'synthgen results BATCH' into a tool that writes there, "
            f"such as 'aws s3 cp - {place}'."
        )
    ending = Path(next((place.removesuffix(end) for end in PACKED if place.endswith(end)), place)).suffix.lower()
    if ending in _OTHER_FORMATS:
        raise BadInput(
            f"Cannot write {place}: answers are JSON lines, not {ending}; "
            "name a file that ends in .jsonl, or in .jsonl.gz or .jsonl.zst to have it packed."
        )


def _real_path(place: str) -> Path:
    """Of standard input that of the file behind it, where a shell has redirected one."""
    return Path("/dev/stdin" if place == STDIN else place).resolve()


def _is_no_file(path: Path) -> bool:
    """A terminal, a pipe, /dev/null. Asked of the path as it is given: that of a pipe leads nowhere once resolved."""
    return path.exists() and not path.is_file()


def check_contents(services: Services, batch: Batch | None, *places: str | None) -> None:
    """What stands at ``places`` may be replaced by the answers of ``batch``: older answers to the same questions.

    Before the batch is known (None) any answers of ours will do. Raises BadInput.
    """
    for place in places:
        if place is None or place == STDOUT or not Path(place).is_file() or first_line(Path(place)) == b"":
            continue
        theirs = batch_of_file(Path(place))
        if theirs is None:
            raise BadInput(f"{place} exists and holds no answers of synthgen: name another file, or add --force.")
        if batch is not None and not _same_questions(services, theirs, batch):
            raise BadInput(
                f"{place} holds the answers of another batch ({theirs}): name another file with -o, or add --force."
            )


def batch_of_file(path: Path) -> str | None:
    """The batch whose answers or rejected lines are in the file, by its first line; None for any other content."""
    try:
        value = orjson.loads(first_line(path) or b"")
        if "batch_id" in value:
            return str(value["batch_id"])
        number = str(value["id"]).removeprefix(_ID_PREFIX).rpartition("_")[0]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return f"batch_{number}" if str(value["id"]).startswith(_ID_PREFIX) else None


@contextmanager
def writing(place: str) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well, and not at all otherwise. Raises CannotWrite."""
    try:
        with _opened(place) as file, packed(file, place) as packer:
            yield packer
    except BrokenPipeError:
        raise  # `synthgen results … | head`
    except OSError as error:
        raise CannotWrite(_cannot_write(place, error)) from error


def _opened(place: str) -> AbstractContextManager[BinaryIO]:
    if place == STDOUT:
        return _stdout()
    return Path(place).open("wb") if _is_no_file(Path(place)) else _replacing(Path(place).resolve())


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _cannot_write(place: str, error: OSError) -> str:
    folder = Path(place).resolve().parent
    if isinstance(error, FileNotFoundError):
        return f"Cannot write {place}: there is no folder {folder} any more."
    reason = (error.strerror or str(error)).lower()
    return f"Cannot write {'standard output' if place == STDOUT else place}: {reason}."


@contextmanager
def _stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _same_questions(services: Services, batch_id: str, batch: Batch) -> bool:
    if batch_id == batch.id:
        return True
    try:
        return services.store.get(batch_id).fingerprint == batch.fingerprint
    except NotFound:
        return False
