"""Where a batch's lines come from: a file, standard input or an S3 object; plain, gzip or zstd by its first bytes.

Content is streamed in pieces of about 1 MiB and never held. What the lines mean is no concern of this module.
"""

from __future__ import annotations

import io
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from storage.other_formats import refuse_other_formats
from synthgen.errors import BadInput, NotFound
from synthgen.ports import ObjectStore, Source

if TYPE_CHECKING:
    from storage.s3_client import Place
    from storage.s3_objects import S3Objects

_PIECE = 1 << 20
_MAGIC_BYTES = 6
_LOOKED_AT = 1 << 16

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
_END = b"whole until here"
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)  # so that it does not end with its content
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

Pieces = Iterator[bytes]


def open_source(
    place: str, objects: ObjectStore, *, endpoint_url: str | None = None, region: str | None = None
) -> Source:
    """The input at ``place``: a path, ``-`` for standard input, or ``s3://bucket/key``.

    S3 is the one that ``objects`` is kept on, otherwise that of ``endpoint_url``, where given, or Amazon's.
    Raises BadInput when it is not there or not to be read.
    """
    if place == "-":
        return _stream_source("standard input", sys.stdin.buffer)
    if place.startswith("s3://"):
        return _s3_source(place, objects, endpoint_url=endpoint_url, region=region)
    return _file_source(Path(place))


def check_place(place: str) -> None:
    """Whether a file can be opened; of other places that is told when they are read. Raises BadInput."""
    if place != "-" and not place.startswith("s3://") and not Path(place).is_fifo():
        _open(Path(place)).close()


class ByteSource:
    """A ``Source`` over raw pieces; ``head`` is how the content begins, and tells whether it is compressed."""

    def __init__(
        self, name: str, pieces: Callable[[], Pieces], *, head: bytes, size: int | None, rereadable: bool
    ) -> None:
        for magic, kind in _FOREIGN.items():
            if head.startswith(magic):
                raise BadInput(f"{name} is {kind}: give JSON lines in UTF-8, plain or packed with gzip or zstd.")
        self._pieces = pieces
        self._unpack = _unpacker(head)
        self.name = name
        self.size = size if self._unpack is None else None
        self.rereadable = rereadable

    def chunks(self) -> Pieces:
        pieces = self._pieces()
        return self._checked(pieces if self._unpack is None else self._unpack(pieces, self.name))

    def _checked(self, pieces: Pieces) -> Pieces:
        """The same pieces, once the first of them look like JSON lines."""
        begun: list[bytes] = []
        while sum(map(len, begun)) < _LOOKED_AT and (piece := next(pieces, b"")):
            begun.append(piece)
        head = b"".join(begun)
        refuse_other_formats(self.name, head, whole=len(head) < _LOOKED_AT)
        yield from begun
        yield from pieces

    def copy_to(self, key: str) -> bool:  # noqa: ARG002 - only S3 can copy by itself
        return False


class S3Source(ByteSource):
    """An S3 object, held to the version whose ETag was seen first."""

    def __init__(
        self,
        name: str,
        place: Place,
        pieces: Callable[[], Pieces],
        *,
        head: bytes,
        size: int,
        etag: str,
        objects: S3Objects | None,
    ) -> None:
        super().__init__(name, pieces, head=head, size=size, rereadable=True)
        self._place = place
        self._etag = etag
        self._objects = objects

    def copy_to(self, key: str) -> bool:
        from storage.s3_client import Changed

        if self._objects is None or self.size is None:
            return False
        try:
            return self._objects.copy_from(self._place, key, size=self.size, etag=self._etag)
        except (Changed, NotFound) as error:
            raise BadInput(f"{self.name} was changed while it was being read: submit it again.") from error


def _file_source(path: Path) -> Source:
    name = str(path)
    file = _open(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe, such as <(command) in a shell
        return _stream_source(name, file)
    with file:
        head = b"".join(_read(name, file, at_most=_MAGIC_BYTES))

    def pieces() -> Pieces:
        with _open(path) as file:
            yield from _read(name, file)

    return ByteSource(name, pieces, head=head, size=status.st_size, rereadable=True)


def _stream_source(name: str, file: BinaryIO) -> Source:
    """What can be read only once."""
    head = b"".join(_read(name, file, at_most=_MAGIC_BYTES))

    def pieces() -> Pieces:
        yield head
        yield from _read(name, file)
        if file is not sys.stdin.buffer:
            file.close()

    return ByteSource(name, pieces, head=head, size=None, rereadable=False)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadInput(_cannot_read(str(path), error)) from error


def _read(name: str, file: BinaryIO, *, at_most: int | None = None) -> Pieces:
    """The rest of ``file``, or ``at_most`` bytes in one piece."""
    while True:
        try:
            piece = file.read(at_most or _PIECE)
        except OSError as error:
            raise BadInput(_cannot_read(name, error)) from error
        if piece:
            yield piece
        if at_most or not piece:
            return


def _cannot_read(name: str, error: OSError) -> str:
    reason = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder; name the files in it",
        PermissionError: "its permissions do not allow it",
    }.get(type(error), error.strerror or str(error))
    return f"Cannot read {name}: {reason}."


def _s3_source(name: str, objects: ObjectStore, *, endpoint_url: str | None, region: str | None) -> Source:
    from storage.s3_client import Changed, Place, connect, read, read_head
    from storage.s3_objects import S3Objects

    bucket, _, key = name.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise BadInput(f"Cannot read {name}: name an object, s3://bucket/key.")
    place = Place(Bucket=bucket, Key=key)
    ours = objects if isinstance(objects, S3Objects) else None
    client = connect(endpoint_url=endpoint_url, region=region) if ours is None else ours.client
    try:
        head = read_head(client, place, _MAGIC_BYTES)
    except NotFound as error:
        raise BadInput(f"Cannot read {name}: there is no such object.") from error

    def pieces() -> Pieces:
        try:
            yield from read(client, place, etag=head.etag)
        except (Changed, NotFound) as error:
            raise BadInput(f"{name} was changed while it was being read: submit it again.") from error

    return S3Source(name, place, pieces, head=head.first, size=head.size, etag=head.etag, objects=ours)


def _unpacker(head: bytes) -> Callable[[Pieces, str], Pieces] | None:
    if head.startswith(_GZIP):
        return _gunzip
    if head.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        return _unzstd
    return None


def _gunzip(pieces: Pieces, name: str) -> Pieces:
    """All members of a gzip file; zero bytes after the last one are padding, as for ``gunzip``."""
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    begun = False
    for piece in pieces:
        rest = piece
        while rest:
            if not begun and not (rest := rest.lstrip(b"\0")):
                break
            begun = True
            try:
                content = member.decompress(rest, _PIECE)
            except zlib.error as error:
                raise BadInput(f"{name} is damaged: its gzip content cannot be unpacked.") from error
            if content:
                yield content
            rest = member.unconsumed_tail
            if member.eof:
                rest, begun = member.unused_data, False
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    if begun:
        raise BadInput(f"{name} ends in the middle of its gzip content: it is not complete.")


def _unzstd(pieces: Pieces, name: str) -> Pieces:
    """All frames of a zstd file, and one more of our own: only after a whole frame does its content come out again."""
    feed = _Feed(pieces)
    reader = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", feed), read_across_frames=True)
    held = b""
    try:
        while content := reader.read(_PIECE - len(_END)):
            held += content
            yield held[: -len(_END)]
            held = held[-len(_END) :]
    except zstandard.ZstdError as error:
        if not feed.ended:
            raise BadInput(f"{name} is damaged: its zstd content cannot be unpacked.") from error
    if held != _END:
        raise BadInput(f"{name} ends in the middle of its zstd content: it is not complete.")


class _Feed(io.RawIOBase):
    """Pieces as the file that zstandard reads from, which tells neither that a frame is cut off nor where one ends."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = chain(pieces, self._end())
        self.ended = False

    def read(self, _size: int = -1, /) -> bytes:
        return next(self._pieces, b"")

    def _end(self) -> Pieces:
        """In two parts: after half a header zstd would take a frame that comes in one part for the next."""
        self.ended = True
        yield _END_FRAME[:1]
        yield _END_FRAME[1:]
