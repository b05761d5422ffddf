"""Weights that were pulled into a folder which workers share: where they lie, and what is known of them.

``<models_dir>/<org>--<name>/<commit>/`` holds the files of one commit and, once all are there, ``synthgen-model.json``;
``<models_dir>/<org>--<name>/current`` names the commit that was pulled last. Fetching is ``storage.model_hub``'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import orjson

from synthgen.errors import BadInput

MANIFEST: Final = "synthgen-model.json"
_CURRENT: Final = "current"
_REPOSITORY: Final = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class PulledFile:
    """``size`` in bytes; ``digest`` is the hub's, ``sha256:…`` or ``git:…``, None where it names none."""

    size: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class PulledModel:
    """One commit of a repository, whole on disk. ``files`` are by path within ``folder``."""

    repository: str
    revision: str
    """What was asked for: a branch, a tag or a commit."""
    commit: str
    pulled_at: datetime
    files: Mapping[str, PulledFile]
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def repository_folder(models_dir: Path, repository: str) -> Path:
    """Where the commits of ``org/name`` lie."""
    return models_dir / repository.replace("/", "--")


def resolve_model(models_dir: Path, name: str, revision: str | None = None) -> PulledModel | None:
    """What was pulled under this name: the last pull, or the newest of this branch, tag or commit. None: nothing.

    Raises BadInput when the folder does not hold what it says.
    """
    if not _REPOSITORY.fullmatch(name):
        return None
    folder = repository_folder(models_dir, name)
    if revision is None:
        try:
            return read_manifest(folder / (folder / _CURRENT).read_text(encoding="utf-8").strip())
        except (FileNotFoundError, NotADirectoryError):
            return None
    pulled = [model for path in folder.glob(f"*/{MANIFEST}") if (model := read_manifest(path.parent)) is not None]
    fitting = [model for model in pulled if revision in (model.revision, model.commit)]
    return max(fitting, key=lambda model: model.pulled_at, default=None)


def read_manifest(folder: Path) -> PulledModel | None:
    """The commit that lies in ``folder``, None while it is not all there. Raises BadInput when it cannot be read."""
    path = folder / MANIFEST
    try:
        value = orjson.loads(path.read_bytes())
        files = {name: PulledFile(file["size"], file["digest"]) for name, file in value["files"].items()}
        pulled_at = datetime.fromisoformat(value["pulled_at"])
        return PulledModel(value["repository"], value["revision"], value["commit"], pulled_at, files, folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} cannot be read ({error!r}); remove it and pull the model again.") from error


def write_manifest(model: PulledModel) -> None:
    """Say that the commit is all there, and that whoever names the repository means it."""
    value = {
        "repository": model.repository,
        "revision": model.revision,
        "commit": model.commit,
        "pulled_at": model.pulled_at,
        "files": {name: {"size": file.size, "digest": file.digest} for name, file in sorted(model.files.items())},
    }
    _replace(model.folder / MANIFEST, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    _replace(model.folder.parent / _CURRENT, f"{model.commit}\n".encode())


def _replace(path: Path, content: bytes) -> None:
    """At once, so that a worker that reads meanwhile sees the old or the new."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(content)
    os.replace(draft, path)  # noqa: PTH105 - says what happens when there is one already
