"""OpenAI-batch lines with unique prompts of about 500 bytes: ``python -m tests.benchmarks.workload N > FILE``."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

_SYLLABLES = ("ka", "lo", "mi", "ten", "sor", "vel", "dra", "pin", "qua", "rus", "bel", "nor")
_ENDINGS = ("tion", "ment", "ly", "er", "ing", "ous", "al", "ish", "ward", "ness")
_TEXT_LENGTH = 100_000


def lines(count: int, *, salt: str = "") -> Iterator[bytes]:
    """``count`` lines; another ``salt`` gives other prompts."""
    rng = random.Random(7)
    words = [syllable + ending for syllable in _SYLLABLES for ending in _ENDINGS]
    text = " ".join(rng.choice(words) for _ in range(_TEXT_LENGTH))
    for number in range(count):
        start = rng.randrange(len(text) - 500)
        prompt = f"Prompt {salt}{number}: {text[start : start + 480]}"
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": prompt},
        ]
        body = {"model": "mock", "messages": messages, "max_tokens": 64}
        row = {"custom_id": f"req-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def write(path: Path, count: int, *, salt: str = "") -> Path:
    with path.open("wb") as file:
        file.writelines(lines(count, salt=salt))
    return path


if __name__ == "__main__":
    sys.stdout.buffer.writelines(lines(int(sys.argv[1])))
