"""Fetches the weights of a model from a Hugging Face hub into a folder that workers share (``synthgen.models``).

Each file comes over plain HTTP, at the commit that the revision meant when the pull began, is checked against the hub's
digest and only then moved to its place; what was broken off goes on where it stopped. The library's own download begins
a broken-off file anew, so only its client with its tokens, redirects and retries is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, filter_repo_objects

from synthgen.errors import BadInput, ServiceUnavailable
from synthgen.models import PulledFile, PulledModel, read_manifest, repository_folder, write_manifest
from synthgen.ports import Notify, say_nothing

_STREAMS: Final = 8
"""Files that come at once."""
_PATIENCE: Final = 30.0
"""Seconds for the hub to say what the repository holds."""
_POLL: Final = 0.2
_AGAIN: Final = "what has come is kept; run the same command again"

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are no news


@dataclass(frozen=True, slots=True)
class _File:
    """One file at the hub; ``size`` and ``digest`` are None where a mirror does not tell."""

    path: str
    size: int | None
    digest: str | None


class _Stopped(Exception):
    """Another file failed, or the user wants no more."""


class _Meter:
    """Bytes that are there, counted over all threads; once ``stopped``, downloads end at their next piece."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.there = 0
        self.came = 0
        self.stopped = False

    def found(self, size: int) -> None:
        with self._lock:
            self.there += size

    def update(self, size: int) -> None:
        with self._lock:
            self.there += size
            self.came += size
        if self.stopped:
            raise _Stopped


class _Bar:
    """What the library takes for a progress bar of one download."""

    def __init__(self, meter: _Meter, initial: int = 0, **_: Any) -> None:
        self.update = meter.update
        meter.found(initial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def pull(
    models_dir: Path,
    repository: str,
    *,
    revision: str = "main",
    include: Sequence[str] = (),
    endpoint: str | None = None,
    notify: Notify = say_nothing,
) -> tuple[PulledModel, int]:
    """Bring the files (those that match ``include``, if given) into ``models_dir``; the model, and the bytes that came.

    ``endpoint``: where the hub is, None for HF_ENDPOINT. Whoever pulls the same repository meanwhile is waited for.
    Raises BadInput or ServiceUnavailable with one sentence.
    """
    api = HfApi(endpoint=endpoint, library_name="synthgen")
    with _one_sentence(api.endpoint, repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_PATIENCE)
        assert info.sha is not None, "a hub names the commit"
        files = _wanted(info.siblings or [], repository, include)
        home = repository_folder(models_dir, repository)
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, notify):
            fetching = _Fetching(api.endpoint, repository, info.sha, home)
            return fetching.fetch(files, revision, notify), fetching.meter.came


def _wanted(siblings: Sequence[Any], repository: str, include: Sequence[str]) -> list[_File]:
    names = filter_repo_objects([sibling.rfilename for sibling in siblings], allow_patterns=list(include) or None)
    chosen = set(names)
    if not chosen:
        raise BadInput(f"{repository} has no file that matches {' or '.join(include) or 'anything'}.")
    if bad := next((name for name in chosen if not _is_inside(name)), None):
        raise BadInput(f"{repository} has a file {bad!r} that would lie outside of its folder; it is not pulled.")
    return [_as_file(sibling) for sibling in siblings if sibling.rfilename in chosen]


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _as_file(sibling: Any) -> _File:
    if sibling.lfs is not None:
        return _File(sibling.rfilename, sibling.lfs.size, f"sha256:{sibling.lfs.sha256}")
    return _File(sibling.rfilename, sibling.size, f"git:{sibling.blob_id}" if sibling.blob_id else None)


@contextmanager
def _alone(home: Path, notify: Notify) -> Iterator[None]:
    """One pull of a repository at a time, over all processes: the second finds everything there."""
    with (home / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("waiting for another pull", 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Fetching:
    """The files of one commit on their way into its folder."""

    def __init__(self, endpoint: str, repository: str, commit: str, home: Path) -> None:
        self.meter = _Meter()
        self._endpoint = endpoint
        self._repository = repository
        self._commit = commit
        self._home = home
        self._folder = home / commit
        self._parts = home / ".parts" / commit

    def fetch(self, files: Sequence[_File], revision: str, notify: Notify) -> PulledModel:
        self._folder.mkdir(exist_ok=True)
        before = read_manifest(self._folder)
        sizes = [file.size for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self._fetch_all(files, lambda: notify("pulling", self.meter.there, total))
        got = {file.path: PulledFile((self._folder / file.path).stat().st_size, file.digest) for file in files}
        everything = {**(before.files if before else {}), **got}
        now = datetime.now(UTC).replace(microsecond=0)
        model = PulledModel(self._repository, revision, self._commit, now, everything, self._folder)
        write_manifest(model)
        return model

    def _fetch_all(self, files: Sequence[_File], tell: Callable[[], None]) -> None:
        """Several at once; when one fails, or the user interrupts, the others stop at their next piece."""
        with ThreadPoolExecutor(_STREAMS, thread_name_prefix="pull") as pool:
            try:
                pending: set[Future[None]] = {pool.submit(self._fetch_one, file) for file in files}
                while pending:
                    done, pending = wait(pending, timeout=_POLL, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    tell()
            except BaseException:
                self.meter.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_one(self, file: _File) -> None:
        place, part = self._folder / file.path, self._parts / file.path
        if place.is_file() and file.size in (None, place.stat().st_size):
            self.meter.found(place.stat().st_size)
            return
        for path in (place, part):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not self._link_equal(file, place):
            self._download(file, part)
            os.replace(part, place)  # noqa: PTH105 - over a damaged one, if there is one

    def _link_equal(self, file: _File, place: Path) -> bool:
        """Weights seldom change with a commit: take the same file of another commit that lies here."""
        if file.digest is None:
            return False
        for folder in self._home.iterdir():
            other = read_manifest(folder) if folder != self._folder else None
            for name, known in other.files.items() if other else ():
                if known.digest == file.digest:
                    place.unlink(missing_ok=True)
                    with suppress(OSError):  # no links on this disk, or the file was removed: then it is fetched
                        place.hardlink_to(folder / name)
                        self.meter.found(known.size)
                        return True
        return False

    def _download(self, file: _File, part: Path) -> None:
        """All of it into ``part``, going on after what is there. Raises ServiceUnavailable when it came damaged."""
        if file.size is not None and file.size > MAX_HTTP_DOWNLOAD_SIZE:
            raise BadInput(
                f"{file.path} has {file.size:,} bytes, more than hubs give over HTTP; fetch it by other means."
            )
        url = hf_hub_url(self._repository, file.path, revision=self._commit, endpoint=self._endpoint)
        headers = build_hf_headers(library_name="synthgen") | {"Accept-Encoding": "identity"}  # ranges count its bytes
        with part.open("ab") as out:
            if file.size is None or out.tell() > file.size:
                out.seek(0)
                out.truncate()
            have = out.tell()
            if have == file.size:
                self.meter.found(have)

            def bar(**options: Any) -> Any:
                return _Bar(self.meter, **options)

            http_get(url, out, resume_size=have, headers=headers, expected_size=file.size, tqdm_class=bar)  # type: ignore[arg-type]  # anything that makes a bar
        if file.digest is not None and _digest(part, file.digest) != file.digest:
            part.unlink()
            raise ServiceUnavailable(f"{file.path} came damaged from {self._endpoint} and was dropped; {_AGAIN}.")


def _digest(path: Path, like: str) -> str:
    """Of the file, made as ``like`` was: SHA-256 of large files, Git's own of small ones."""
    if like.startswith("sha256:"):
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    content = path.read_bytes()
    blob = b"blob %d\0" % len(content) + content
    return f"git:{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"


@contextmanager
def _one_sentence(endpoint: str, repository: str, revision: str) -> Iterator[None]:
    """What the library and the disk raise, as our errors."""
    try:
        yield
    except GatedRepoError as error:
        raise BadInput(
            f"{repository} is gated: ask for access at {endpoint}/{repository}, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"There is no model {repository!r} at {endpoint}: check the name, or set HF_TOKEN if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise BadInput(f"{repository} has no revision {revision!r}: name a branch, a tag or a commit.") from error
    except HFValidationError as error:
        raise BadInput(f"{repository!r} is no name of a model: write it as ORGANISATION/NAME.") from error
    except OfflineModeIsEnabled as error:
        raise BadInput("HF_HUB_OFFLINE is set, and pulling needs the hub: unset it.") from error
    except HfHubHTTPError as error:
        raise _answered(endpoint, error) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ServiceUnavailable(f"The model hub at {endpoint} cannot be reached ({reason}); {_AGAIN}.") from error
    except OSError as error:
        if error.errno is None:  # the library found fewer bytes than it was promised
            raise ServiceUnavailable(f"The model hub at {endpoint} sent a file short; {_AGAIN}.") from error
        raise BadInput(f"The weights cannot be stored: {error.strerror} ({error.filename}).") from error


def _answered(endpoint: str, error: HfHubHTTPError) -> BadInput | ServiceUnavailable:
    status = error.response.status_code
    if status in (401, 403):
        return BadInput(f"The model hub at {endpoint} refuses access (HTTP {status}): set HF_TOKEN to a valid token.")
    return ServiceUnavailable(f"The model hub at {endpoint} answered HTTP {status}; {_AGAIN}.")
