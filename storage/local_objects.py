"""Objects as files in a folder: what the embedded default uses, and any cluster with a shared file system.

An object appears under its name whole and on disk, or not at all: it is written beside its place, synced and renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from storage.object_keys import check_key
from synthgen.errors import BadSetting, NotFound, ServiceUnavailable
from synthgen.ports import ObjectInfo

_PIECE = 1 << 20
_UNFINISHED = ".upload-"
"""Beginning of the names of files that are still being written; no object can be called so."""


class LocalObjects:
    """``ObjectStore`` in the folder ``root``, made where it is missing. Raises BadSetting when it cannot be."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadSetting(
                f"The storage folder {self.root} cannot be used ({error.strerror}): "
                "choose another with SYNTHGEN_STORAGE_URL."
            ) from error

    def put(self, key: str, data: bytes) -> None:
        with self.writer(key) as upload:
            upload.write(data)
            upload.commit()

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        with self._open(key) as file, _plain_errors(file.name):
            file.seek(start)
            return file.read() if end is None else file.read(max(0, end - start))

    def stream(self, key: str) -> Iterator[bytes]:
        with self._open(key) as file, _plain_errors(file.name):
            while piece := file.read(_PIECE):
                yield piece

    @contextmanager
    def writer(self, key: str) -> Iterator[LocalWriter]:
        upload = LocalWriter(self._path(key), self.root)
        try:
            yield upload
        finally:
            upload.abort()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        within, _, _ = prefix.rpartition("/")
        if within:
            check_key(within)
        return _walk(self.root / within, f"{within}/" if within else "", prefix)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            with _plain_errors(path):
                path.unlink(missing_ok=True)
            self._remove_empty(path.parent)

    def sweep_uploads(self, *, older_than: float) -> int:
        limit = time.time() - older_than
        swept = 0
        for path in self.root.rglob(f"{_UNFINISHED}*"):
            with _plain_errors(path), suppress(FileNotFoundError):  # finished meanwhile
                if path.stat().st_mtime < limit:
                    path.unlink()
                    swept += 1
        return swept

    def url(self, key: str) -> str:
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        if any(part.startswith(_UNFINISHED) for part in check_key(key).split("/")):
            raise ValueError(f"{key!r} is a name for unfinished uploads, not for an object")
        return self.root / key

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        try:
            return path.open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"There is no object {key} in {self.root}.") from error
        except OSError as error:
            raise _unavailable(path, error) from error

    def _remove_empty(self, folder: Path) -> None:
        """Folders vanish with their last object, as prefixes do on S3."""
        with suppress(OSError):
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent


class LocalWriter:
    """``ObjectWriter`` to one file; ``abort`` after ``commit`` does nothing."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        with _plain_errors(path):
            self._file = _create_beside(path, root)

    def write(self, data: bytes) -> None:
        with _plain_errors(self._path):
            self._file.write(data)

    def commit(self) -> None:
        with _plain_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            Path(self._file.name).replace(self._path)
            _sync_folder(self._path.parent)

    def abort(self) -> None:
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        with suppress(OSError):
            Path(self._file.name).unlink()


@contextmanager
def _plain_errors(where: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unavailable(where, error) from error


def _unavailable(where: Path | str, error: OSError) -> ServiceUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ServiceUnavailable(f"No space is left for {where}: free some, then go on.")
    return ServiceUnavailable(f"Storage failed at {where}: {error.strerror}.")


def _create_beside(path: Path, root: Path) -> BinaryIO:
    """A new file in the folder of ``path``; tries again when a delete has just removed the empty folder."""
    unfinished = path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
    for _ in range(10):
        with suppress(FileNotFoundError):
            _make_folder(path.parent, root)
            return unfinished.open("xb", buffering=_PIECE)
    return unfinished.open("xb", buffering=_PIECE)


def _make_folder(folder: Path, root: Path) -> None:
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
    with suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, as fsync on a file does its content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(folder: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
    """Objects under ``folder``, whose key is ``base``, in key order: ``a-b`` stands before ``a/b``."""
    try:
        entries = sorted((f"{entry.name}/" if entry.is_dir() else entry.name, entry) for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in entries:
        key = base + name
        if entry.is_dir():
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(Path(entry.path), key, prefix)
        elif key.startswith(prefix) and not name.startswith(_UNFINISHED):
            with suppress(FileNotFoundError):  # deleted since the folder was read
                status = entry.stat()
                yield ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
