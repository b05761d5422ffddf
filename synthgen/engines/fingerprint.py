"""A short name for what answers come from where nobody names a commit: weights in a folder, a file, a command's words.

It goes into cache keys. Without it the next checkpoint under the same model name would be answered from the cache of
the last one, and nobody would notice. Copies on two hosts agree: neither paths nor times count, only what is in files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

import orjson

from synthgen.errors import BadInput
from synthgen.models import MANIFEST

_SIZE: Final = 8
"""Bytes: 16 hex digits."""
_SAMPLE: Final = 64 * 1024
_SAMPLES: Final = 16
"""Of each file, evenly spread: 500 GB of weights cost a few hundred small reads, and training changes all of a file."""
_PASSED_OVER: Final = frozenset({MANIFEST, "__pycache__"})
"""Besides all that is hidden: they say when something was fetched or run, not what it is."""
_WEIGHTS: Final = frozenset({".gguf", ".safetensors"})
_CONFIGS: Final = ("config.json", "adapter_config.json")


def of_path(path: Path) -> str:
    """Of a file, or of all files in a folder. Raises BadInput when they cannot be read."""
    found = blake2b(digest_size=_SIZE)
    try:
        for name, file in _files(path):
            for part in (name.encode(), str(file.stat().st_size).encode(), *_samples(file)):
                _add(found.update, part)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error}): check that this user may read all files in it.") from error
    return found.hexdigest()


def of_words(words: Iterable[str], *, is_content: Callable[[Path], bool] = Path.exists) -> str:
    """Of words, where a path for which ``is_content`` holds stands for what is in it. Raises BadInput."""
    found = blake2b(digest_size=_SIZE)
    for word in words:
        _add(found.update, _meaning(word, is_content).encode())
    return found.hexdigest()


def is_weights(path: Path) -> bool:
    """A file or a folder of weights; a log, a program or a cache of the command's is none."""
    return path.suffix in _WEIGHTS or any((path / name).is_file() for name in _CONFIGS)


def _add(update: Callable[[bytes], None], part: bytes) -> None:
    """Length first: two parts must not read as one."""
    update(len(part).to_bytes(8))
    update(part)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Name within ``path`` and place of each file, in the order of the names."""
    if path.is_file():
        yield "", path
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = sorted(name for name in folders if _counts(name))
        for name in sorted(filter(_counts, names)):
            file = Path(folder, name)
            if file.is_file():
                yield str(file.relative_to(path)), file


def _raise(error: OSError) -> None:
    raise error


def _counts(name: str) -> bool:
    return not name.startswith(".") and name not in _PASSED_OVER


def _samples(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as content:
        if size <= _SAMPLE * _SAMPLES:
            yield content.read()
            return
        for number in range(_SAMPLES):  # the first begins the file, the last ends it
            content.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            yield content.read(_SAMPLE)


def _meaning(word: str, is_content: Callable[[Path], bool]) -> str:
    """A path may stand alone, after ``name=``, or in a JSON object, as vLLM's LoRA modules do."""
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(word)
        if isinstance(value, dict):
            return repr(sorted((key, _meaning(str(part), is_content)) for key, part in value.items()))
    before, equals, path = word.rpartition("=")
    with suppress(OSError, ValueError):  # no path, or none that a system could have: a template, written out
        if path and is_content(Path(path)):
            return before + equals + of_path(Path(path))
    return word
