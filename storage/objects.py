"""Which object store a storage URL means. S3 is loaded only when it is meant."""

from __future__ import annotations

from pathlib import Path

from storage.local_objects import LocalObjects
from synthgen.errors import BadSetting
from synthgen.ports import ObjectStore


def open_objects(storage_url: str, *, endpoint_url: str | None = None, region: str | None = None) -> ObjectStore:
    """The store at ``s3://bucket/prefix`` or in a folder, ready for use: what is missing is made.

    Raises BadSetting or ServiceUnavailable, with one sentence that says what to do.
    """
    scheme, divider, rest = storage_url.partition("://")
    if not divider:
        return LocalObjects(Path(storage_url))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise BadSetting(f"SYNTHGEN_STORAGE_URL is {storage_url!r}: give a folder or s3://bucket/prefix.")
    from storage.s3_objects import S3Objects

    # A wrong address is told at once; later a server that starts anew is waited for.
    S3Objects(bucket, prefix, endpoint_url=endpoint_url, region=region, tries=3).ensure_bucket()
    return S3Objects(bucket, prefix, endpoint_url=endpoint_url, region=region)
