"""The one door to boto3: a client for any S3 endpoint, reads that survive a broken connection, and errors in our words.

No exception of boto3 leaves the modules ``storage.s3_*``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BrokenConnection

from synthgen.errors import BadSetting, NotFound, ServiceUnavailable, SynthgenError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PIECE = 1 << 20
_TRIES = 5
"""In a row without a byte of progress, each with boto3's own retries inside."""
_BROKEN = (BrokenConnection, HTTPClientError, IncompleteReadError)
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)


_SET_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws"


class Changed(SynthgenError):
    """The object is not the one that was asked for: somebody wrote it anew."""


class _PastTheEnd(SynthgenError):
    """The range begins where the object has ended."""


_Meaning = tuple[type[SynthgenError], str]
_FAILING: _Meaning = (ServiceUnavailable, "S3 at {endpoint} fails with {code}: try again when it is well.")
_REFUSED: _Meaning = (BadSetting, "S3 at {endpoint} refuses {what} ({code}): {message}")
_BAD_KEYS: _Meaning = (BadSetting, f"S3 at {{endpoint}} refuses the credentials ({{code}}): {_SET_CREDENTIALS}.")
_NO_RIGHTS: _Meaning = (
    BadSetting,
    "The credentials are not allowed to use {what} at {endpoint}: give them read, write and list rights.",
)
_BY_CODE: dict[str, _Meaning] = {
    "ExpiredToken": _BAD_KEYS,
    "InvalidAccessKeyId": _BAD_KEYS,
    "InvalidRange": (_PastTheEnd, "{what}"),
    "InvalidToken": _BAD_KEYS,
    "NoSuchBucket": (BadSetting, "There is no bucket for {what} at {endpoint}."),
    "RequestTimeTooSkewed": (BadSetting, "S3 at {endpoint} refuses the clock of this machine: set it right."),
    "SignatureDoesNotMatch": _BAD_KEYS,
}
_BY_STATUS: dict[int, _Meaning] = {
    401: _BAD_KEYS,
    403: _NO_RIGHTS,
    404: (NotFound, "There is no object {what}."),
    412: (Changed, "{what} was changed while it was being read."),
    429: _FAILING,
}


class Place(TypedDict):
    """The arguments that name an object in every call."""

    Bucket: str
    Key: str


def connect(*, endpoint_url: str | None = None, region: str | None = None, tries: int = 10) -> S3Client:
    """A client, safe to share between threads; nothing is sent yet. Raises BadSetting.

    ``tries`` are what each request gets, at growing intervals: 10 last about 15 seconds when nobody answers.

    Credentials, and whatever is None here, come from the standard AWS variables and files.
    """
    options: dict[str, Any] = {}
    if endpoint_url:  # not every S3 server knows the newer checksums
        options = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(
        signature_version="s3v4",
        connect_timeout=3,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=32,
        tcp_keepalive=True,
        **options,
    )
    try:
        session = boto3.Session(region_name=region)
        # Every request is signed for some region; servers of one's own do not care for which.
        region = session.region_name or "us-east-1"
        return session.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise BadSetting(
            f"SYNTHGEN_S3_ENDPOINT_URL is {endpoint_url!r}: give an address such as http://host:8333."
        ) from error
    except BotoCoreError as error:
        raise BadSetting(f"The AWS settings cannot be used: {_sentence(error)}") from error


@contextmanager
def plain_errors(client: S3Client, what: str) -> Iterator[None]:
    """Turn what boto3 raises into NotFound, Changed, BadSetting or ServiceUnavailable about ``what``."""
    endpoint = client.meta.endpoint_url
    try:
        yield
    except ClientError as error:
        raise _refusal(error, what, endpoint) from error
    except _CREDENTIALS as error:
        raise BadSetting(f"No credentials for S3 at {endpoint}: {_SET_CREDENTIALS}.") from error
    except _BROKEN as error:
        raise ServiceUnavailable(
            f"S3 at {endpoint} does not answer: check SYNTHGEN_S3_ENDPOINT_URL, and that the server runs."
        ) from error
    except ParamValidationError as error:
        raise BadSetting(f"{what} is not a name that S3 allows.") from error
    except BotoCoreError as error:
        raise BadSetting(f"S3 at {endpoint} cannot be asked for {what}: {_sentence(error)}") from error


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def read(client: S3Client, place: Place, *, start: int = 0, end: int | None = None, etag: str = "") -> Iterator[bytes]:
    """The bytes ``start`` to ``end`` (exclusive) in pieces of 1 MiB.

    A connection that breaks is taken up where it broke, and only while the object is still the same. Raises NotFound;
    Changed when the object's ETag is not ``etag`` (where given) or no longer what it was.
    """
    what = f"s3://{place['Bucket']}/{place['Key']}"
    failures = 0
    while end is None or start < end:
        try:
            with plain_errors(client, what):
                reply = client.get_object(**place, **_which(start, end, etag))
        except _PastTheEnd:
            return
        etag = reply["ETag"]
        with closing(reply["Body"]) as body:
            while failures < _TRIES:
                try:
                    with plain_errors(client, what):
                        piece = body.read(_PIECE)
                except ServiceUnavailable:
                    failures += 1
                    if failures == _TRIES:
                        raise
                    break
                if not piece:
                    return
                failures = 0
                start += len(piece)
                yield piece


@dataclass(frozen=True, slots=True)
class Head:
    """How an object begins, its size in bytes, and its version."""

    first: bytes
    size: int
    etag: str


def read_head(client: S3Client, place: Place, length: int) -> Head:
    """One request, answered with a reason where it fails (HEAD has none). Raises NotFound."""
    with plain_errors(client, f"s3://{place['Bucket']}/{place['Key']}"):
        reply = client.get_object(**place)
        with closing(reply["Body"]) as body:
            return Head(body.read(length), reply["ContentLength"], reply["ETag"])


def _which(start: int, end: int | None, etag: str) -> dict[str, Any]:
    """The optional arguments of a read."""
    which = {"IfMatch": etag} if etag else {}
    if start or end is not None:
        which["Range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
    return which


def _refusal(error: ClientError, what: str, endpoint: str) -> SynthgenError:
    code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    default = _FAILING if status >= 500 else _REFUSED
    kind, sentence = _BY_CODE.get(code) or _BY_STATUS.get(status) or default
    message = error.response.get("Error", {}).get("Message", "")
    return kind(sentence.format(what=what, endpoint=endpoint, code=code, message=message))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else f"{text}."
