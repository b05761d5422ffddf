"""What only S3 has to keep: buckets, credentials, parts, copies on the server, connections that break."""

from __future__ import annotations

import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from storage.objects import open_objects
from storage.s3_client import Changed, connect, read
from storage.s3_objects import S3Objects
from storage.s3_upload import part_size
from synthgen.errors import BadSetting, ServiceUnavailable
from tests.services.ports import free_ports
from tests.services.s3 import S3Server

MIB = 1 << 20


@pytest.fixture
def store(s3_credentials: S3Server) -> S3Objects:
    return S3Objects(s3_credentials.bucket, secrets.token_hex(8), endpoint_url=s3_credentials.endpoint_url)


def test_a_missing_bucket_is_made_once(s3_credentials: S3Server) -> None:
    bucket = f"new-{secrets.token_hex(8)}"
    for _ in range(2):
        store = open_objects(f"s3://{bucket}/prefix", endpoint_url=s3_credentials.endpoint_url)
        store.put("x", b"1")
    assert store.url("x") == f"s3://{bucket}/prefix/x"


def test_a_bucket_that_may_not_be_made_is_one_sentence(
    s3_credentials: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_credentials.limited_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_credentials.limited_secret)
    with pytest.raises(BadSetting, match=r"no bucket own at http.*make it, or name another in SYNTHGEN_STORAGE_URL"):
        open_objects("s3://own/prefix", endpoint_url=s3_credentials.endpoint_url)


def test_credentials_without_rights_are_told_which_they_lack(
    s3_credentials: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_credentials.limited_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_credentials.limited_secret)
    with pytest.raises(BadSetting, match="give them read, write and list rights"):
        open_objects(f"s3://{s3_credentials.bucket}", endpoint_url=s3_credentials.endpoint_url)


@pytest.mark.parametrize(
    ("name", "code"), [("ACCESS_KEY_ID", "InvalidAccessKeyId"), ("SECRET_ACCESS_KEY", "Signature")]
)
def test_wrong_credentials_are_named_with_the_endpoint(
    s3_credentials: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setenv(f"AWS_{name}", "wrong")
    with pytest.raises(BadSetting, match=f"{s3_credentials.endpoint_url} refuses the credentials .{code}"):
        open_objects(f"s3://{s3_credentials.bucket}", endpoint_url=s3_credentials.endpoint_url)


def test_missing_credentials_say_what_to_set(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(BadSetting, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_objects(f"s3://{s3_server.bucket}", endpoint_url=s3_server.endpoint_url)


def test_a_server_that_is_away_is_unavailable_and_named(s3_credentials: S3Server) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = S3Objects("bucket", endpoint_url=nobody, tries=2)
    with pytest.raises(ServiceUnavailable, match=f"{nobody} does not answer: check SYNTHGEN_S3_ENDPOINT_URL"):
        store.ensure_bucket()
    with pytest.raises(ServiceUnavailable, match=nobody):
        store.put("x", b"")


@pytest.mark.parametrize("address", ["localhost", "http//nope"])
def test_an_endpoint_that_is_no_address_is_one_sentence(s3_credentials: S3Server, address: str) -> None:
    with pytest.raises(BadSetting, match="SYNTHGEN_S3_ENDPOINT_URL"):
        open_objects("s3://bucket", endpoint_url=address)


def test_a_bucket_name_that_cannot_be_is_one_sentence(s3_credentials: S3Server) -> None:
    with pytest.raises(BadSetting, match=r"s3://no bucket!/ is not a name that S3 allows"):
        open_objects("s3://no bucket!", endpoint_url=s3_credentials.endpoint_url)


def test_ten_thousand_parts_hold_five_terabytes_and_none_is_larger_than_s3_allows() -> None:
    sizes = [part_size(number, 8 * MIB) for number in range(1, 10_001)]
    assert sizes[:1_000] == [8 * MIB] * 1_000
    assert sum(sizes) > 5 * 2**40
    assert sizes == sorted(sizes)
    assert sizes[-1] < 5 * 2**30


def test_an_upload_of_many_parts_keeps_their_order(s3_credentials: S3Server) -> None:
    store = S3Objects(
        s3_credentials.bucket, secrets.token_hex(8), endpoint_url=s3_credentials.endpoint_url, first_part=5 * MIB
    )
    with store.writer("numbers") as upload:
        for number in range(33):
            upload.write(bytes([number]) * MIB)
        upload.commit()
    content = store.get("numbers")
    assert content == b"".join(bytes([number]) * MIB for number in range(33))


def test_a_copy_on_the_server_is_held_to_the_version_that_was_read(store: S3Objects) -> None:
    store.put("source", b"first")
    etag = store.client.head_object(Bucket=store.bucket, Key=store.prefix + "source")["ETag"]
    source = {"Bucket": store.bucket, "Key": store.prefix + "source"}
    assert store.copy_from(source, "copy", size=5, etag=etag)
    assert store.get("copy") == b"first"
    store.put("source", b"second")
    with pytest.raises(Changed):
        store.copy_from(source, "copy", size=5, etag=etag)
    assert store.get("copy") == b"first"


def test_a_copy_too_large_for_one_request_is_made_in_parts(s3_credentials: S3Server) -> None:
    store = S3Objects(
        s3_credentials.bucket, secrets.token_hex(8), endpoint_url=s3_credentials.endpoint_url, copy_at_once=5 * MIB
    )
    content = secrets.token_bytes(13 * MIB)
    store.put("source", content)
    etag = store.client.head_object(Bucket=store.bucket, Key=store.prefix + "source")["ETag"]
    source = {"Bucket": store.bucket, "Key": store.prefix + "source"}
    assert store.copy_from(source, "copy", size=len(content), etag=etag)
    assert store.get("copy") == content
    with pytest.raises(Changed):
        store.copy_from(source, "other", size=len(content), etag='"0"')
    assert store.sweep_uploads(older_than=-60) == 0


def test_a_reader_notices_that_the_object_was_written_anew(store: S3Objects) -> None:
    store.put("object", b"first")
    place = {"Bucket": store.bucket, "Key": store.prefix + "object"}
    etag = store.client.head_object(**place)["ETag"]
    store.put("object", b"second")
    with pytest.raises(Changed, match="was changed while it was being read"):
        list(read(store.client, place, etag=etag))


def test_stores_with_different_prefixes_do_not_see_each_other(s3_credentials: S3Server) -> None:
    one, other = (
        S3Objects(s3_credentials.bucket, f"tenants/{name}/", endpoint_url=s3_credentials.endpoint_url)
        for name in ("one", "other")
    )
    one.put("x", b"1")
    assert [entry.key for entry in one.list("")] == ["x"]
    assert list(other.list("")) == []


def test_a_client_without_an_endpoint_of_its_own_goes_to_amazon() -> None:
    assert connect(region="eu-central-1").meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"


class BreakingHandler(BaseHTTPRequestHandler):
    """Serves one object, and breaks off each reply after 400,000 bytes."""

    content = secrets.token_bytes(MIB)
    ranges: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "bytes=0-")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + 400_000])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        return


def test_a_connection_that_breaks_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with ThreadingHTTPServer(("127.0.0.1", 0), BreakingHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            store = S3Objects("bucket", endpoint_url=f"http://127.0.0.1:{server.server_port}")
            assert store.get("object") == BreakingHandler.content
        finally:
            server.shutdown()
            thread.join()
            store.client.close()
    assert len(BreakingHandler.ranges) == 3
