"""Which keys an object may have: the same on disk and on S3, so that a batch can move between them."""

from __future__ import annotations


def check_key(key: str) -> str:
    """The key itself. Raises ValueError for one that is empty, absolute or could lead out of its folder."""
    parts = key.split("/")
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is not an object key: parts divided by single slashes, none of them '.' or '..'")
    return key
