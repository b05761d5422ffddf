"""Files of our own making that are packed as their names say: what ``sources`` takes in may also go out."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import zstandard

PACKED: Final = (".gz", ".zst")
_LONGEST_LINE: Final = 100_000_000


@contextmanager
def packed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """``file``, or what packs all that is written to it when ``name`` ends so. ``file`` is left open."""
    if name.endswith(".gz"):
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6) as packer:
            yield cast("BinaryIO", packer)
    elif name.endswith(".zst"):
        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as packer:
            yield cast("BinaryIO", packer)
    else:
        yield file


def first_line(path: Path) -> bytes | None:
    """Unpacked; None of a file that is not packed as its name says. Raises OSError."""
    try:
        with path.open("rb") as file:
            return _unpacked(file, path.name).readline(_LONGEST_LINE)
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError):
        return None


def _unpacked(file: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if name.endswith(".zst"):
        reader = zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", reader)))
    return file
