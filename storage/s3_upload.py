"""A streamed upload to S3: small objects in one request, large ones in parts that are sent while more is written."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from storage.s3_client import Place, plain_errors
from synthgen.errors import NotFound, SynthgenError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_LOG = logging.getLogger(__name__)
_IN_FLIGHT = 3
"""Parts on their way at once: with the one being filled, this bounds the memory of an upload."""
_MAX_PARTS = 10_000


def part_size(number: int, first: int) -> int:
    """Bytes of part ``number`` (from 1): doubles each thousand, so that ``_MAX_PARTS`` parts of 8 MiB hold 8 TB."""
    return first << ((number - 1) * 10 // _MAX_PARTS)


class S3Writer:
    """``ObjectWriter`` to one key; ``abort`` after ``commit`` does nothing."""

    def __init__(self, client: S3Client, place: Place, *, first_part: int) -> None:
        self._client = client
        self._place = place
        self._what = f"s3://{place['Bucket']}/{place['Key']}"
        self._first_part = first_part
        self._buffer = bytearray()
        self._size = 0
        self._upload_id: str | None = None
        self._senders: ThreadPoolExecutor | None = None
        self._sending: deque[Future[None]] = deque()
        self._parts: list[CompletedPartTypeDef] = []

    def write(self, data: bytes) -> None:
        self._buffer += data
        self._size += len(data)
        while len(self._buffer) >= (size := part_size(len(self._parts) + 1, self._first_part)):
            with memoryview(self._buffer) as view:
                part = bytes(view[:size])
            del self._buffer[:size]
            self._send(part)

    def commit(self) -> None:
        if self._upload_id is None:
            with plain_errors(self._client, self._what):
                self._client.put_object(**self._place, Body=bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
        self._wait(0)
        self._complete(self._upload_id)
        self._upload_id = None
        self._stop_senders()

    def abort(self) -> None:
        self._stop_senders()
        if self._upload_id is None:
            return
        try:
            with plain_errors(self._client, self._what):
                self._client.abort_multipart_upload(**self._place, UploadId=self._upload_id)
        except SynthgenError as error:
            _LOG.warning("unfinished upload left behind until it is swept: %s (%s)", self._what, error)
        self._upload_id = None

    def _send(self, part: bytes) -> None:
        if self._upload_id is None or self._senders is None:
            with plain_errors(self._client, self._what):
                self._upload_id = self._client.create_multipart_upload(**self._place)["UploadId"]
            self._senders = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="s3-upload")
        self._wait(_IN_FLIGHT - 1)
        done: CompletedPartTypeDef = {"PartNumber": len(self._parts) + 1}
        self._parts.append(done)
        self._sending.append(self._senders.submit(self._send_part, self._upload_id, done, part))

    def _send_part(self, upload_id: str, done: CompletedPartTypeDef, part: bytes) -> None:
        with plain_errors(self._client, self._what):
            reply = self._client.upload_part(
                **self._place, UploadId=upload_id, PartNumber=done["PartNumber"], Body=part
            )
        done["ETag"] = reply["ETag"]

    def _wait(self, at_most: int) -> None:
        """Until so few parts are on their way. Raises what went wrong with one."""
        while len(self._sending) > at_most:
            self._sending.popleft().result()

    def _complete(self, upload_id: str) -> None:
        try:
            with plain_errors(self._client, self._what):
                self._client.complete_multipart_upload(
                    **self._place, UploadId=upload_id, MultipartUpload={"Parts": self._parts}
                )
        except NotFound:
            # When the reply to a first try was lost, boto3 tries again and finds the upload closed already.
            with plain_errors(self._client, self._what):
                if self._client.head_object(**self._place)["ContentLength"] != self._size:
                    raise

    def _stop_senders(self) -> None:
        """What is on its way comes to its end; what is not does not begin."""
        if self._senders is not None:
            self._senders.shutdown(cancel_futures=True)
        self._senders = None
        self._sending.clear()
