"""Objects in a bucket of any S3 server: what a cluster uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from storage.object_keys import check_key
from storage.s3_client import Place, connect, error_code, plain_errors, read
from storage.s3_upload import S3Writer
from synthgen.errors import BadSetting, NotFound, ServiceUnavailable
from synthgen.ports import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef, CreateBucketRequestTypeDef

_DELETES_AT_ONCE = 1_000
_CANNOT_COPY = {"AccessDenied", "MethodNotAllowed", "NotImplemented"}


class S3Objects:
    """``ObjectStore`` in ``bucket``, all keys under ``prefix``.

    Listings come in the server's order: key order on Amazon's, folder by folder on SeaweedFS, which differs only where
    a folder's name is the beginning of its neighbour's. Ours are not.

    ``first_part`` is the size of an upload's first parts, ``copy_at_once`` the most that the server copies in one
    request (both bytes, and S3 allows no less than 5 MiB and no more than 5 GiB).
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        tries: int = 10,
        first_part: int = 8 << 20,
        copy_at_once: int = 5 << 30,
    ) -> None:
        prefix = prefix.strip("/")
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.client: S3Client = connect(endpoint_url=endpoint_url, region=region, tries=tries)
        self._first_part = first_part
        self._copy_at_once = copy_at_once

    def ensure_bucket(self) -> None:
        """See that the bucket can be used; make it where it is missing. Raises BadSetting or ServiceUnavailable."""
        try:
            with plain_errors(self.client, self.url("")):
                self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        except BadSetting as error:
            if not isinstance(error.__cause__, ClientError) or error_code(error.__cause__) != "NoSuchBucket":
                raise
            self._make_bucket()

    def _make_bucket(self) -> None:
        wanted: CreateBucketRequestTypeDef = {"Bucket": self.bucket}
        region = self.client.meta.region_name
        if self.client.meta.endpoint_url.endswith(".amazonaws.com") and region != "us-east-1":
            wanted["CreateBucketConfiguration"] = {"LocationConstraint": region}  # type: ignore[typeddict-item] # any region
        try:
            with plain_errors(self.client, f"bucket {self.bucket}"):
                self.client.create_bucket(**wanted)
        except BadSetting as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and error_code(cause) == "BucketAlreadyOwnedByYou":
                return  # another process was quicker
            raise BadSetting(
                f"There is no bucket {self.bucket} at {self.client.meta.endpoint_url} and it cannot be made "
                f"({error_code(cause) if isinstance(cause, ClientError) else error}): make it, or name another in "
                "SYNTHGEN_STORAGE_URL."
            ) from error

    def put(self, key: str, data: bytes) -> None:
        with plain_errors(self.client, self.url(key)):
            self.client.put_object(**self._place(key), Body=data)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            self._head(key)
            return b""
        return b"".join(read(self.client, self._place(key), start=start, end=end))

    def stream(self, key: str) -> Iterator[bytes]:
        return read(self.client, self._place(key))

    @contextmanager
    def writer(self, key: str) -> Iterator[S3Writer]:
        upload = S3Writer(self.client, self._place(key), first_part=self._first_part)
        try:
            yield upload
        finally:
            upload.abort()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = iter(
            self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        )
        while True:
            with plain_errors(self.client, self.url(prefix)):
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(self.prefix)
                yield ObjectInfo(key, entry["Size"], entry["LastModified"].astimezone(UTC))

    def delete(self, keys: Iterable[str]) -> None:
        rest = iter(keys)
        while some := [self._place(key)["Key"] for key in islice(rest, _DELETES_AT_ONCE)]:
            with plain_errors(self.client, self.url("")):
                reply = self.client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            if errors := [error for error in reply.get("Errors", ()) if error.get("Code") != "NoSuchKey"]:
                first = errors[0]
                raise ServiceUnavailable(
                    f"S3 at {self.client.meta.endpoint_url} could not delete {len(errors)} objects, "
                    f"the first {first.get('Key')} ({first.get('Code')}): {first.get('Message')}"
                )

    def sweep_uploads(self, *, older_than: float) -> int:
        limit = datetime.now(UTC) - timedelta(seconds=older_than)
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
        swept = 0
        with plain_errors(self.client, self.url("")):
            stale = [upload for page in pages for upload in page.get("Uploads", ()) if upload["Initiated"] < limit]
        for upload in stale:
            try:
                with plain_errors(self.client, f"s3://{self.bucket}/{upload['Key']}"):
                    self.client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                swept += 1
            except NotFound:
                continue  # finished meanwhile
        return swept

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def copy_from(self, source: Place, key: str, *, size: int, etag: str) -> bool:
        """Have the server copy another object of ``size`` bytes to ``key``; False where it cannot or may not.

        Raises Changed when the source's ETag is no longer ``etag``.
        """
        try:
            with plain_errors(self.client, f"s3://{source['Bucket']}/{source['Key']}"):
                if size > self._copy_at_once:
                    self._copy_parts(source, key, size=size, etag=etag)
                else:
                    self.client.copy_object(**self._place(key), CopySource=_copy_source(source), CopySourceIfMatch=etag)
        except BadSetting as error:
            if isinstance(error.__cause__, ClientError) and error_code(error.__cause__) in _CANNOT_COPY:
                return False
            raise
        return True

    def _copy_parts(self, source: Place, key: str, *, size: int, etag: str) -> None:
        place = self._place(key)
        upload_id = self.client.create_multipart_upload(**place)["UploadId"]

        def copy_part(number: int) -> CompletedPartTypeDef:
            start, end = (number - 1) * self._copy_at_once, min(number * self._copy_at_once, size)
            reply = self.client.upload_part_copy(
                **place,
                UploadId=upload_id,
                PartNumber=number,
                CopySource=_copy_source(source),
                CopySourceIfMatch=etag,
                CopySourceRange=f"bytes={start}-{end - 1}",
            )
            return {"PartNumber": number, "ETag": reply["CopyPartResult"]["ETag"]}

        try:
            with ThreadPoolExecutor(4, thread_name_prefix="s3-copy") as pool:
                parts = list(pool.map(copy_part, range(1, -(-size // self._copy_at_once) + 1)))
            self.client.complete_multipart_upload(**place, UploadId=upload_id, MultipartUpload={"Parts": parts})
        except BaseException:
            self.client.abort_multipart_upload(**place, UploadId=upload_id)
            raise

    def _place(self, key: str) -> Place:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def _head(self, key: str) -> None:
        with plain_errors(self.client, self.url(key)):
            self.client.head_object(**self._place(key))


def _copy_source(place: Place) -> CopySourceTypeDef:
    return {"Bucket": place["Bucket"], "Key": place["Key"]}
