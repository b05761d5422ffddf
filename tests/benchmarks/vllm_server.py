"""A vLLM server as our worker starts it, for benchmarks that ask it without us."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthgen.engines.base import EngineSpec
from synthgen.engines.vllm import VllmEngine
from tests.benchmarks.stack import PYTHON
from tests.services.ports import free_ports
from tests.services.vllm import Vllm

PATIENCE = 900


@contextmanager
def vllm_server(vllm: Vllm, *flags: str) -> Iterator[str]:
    """Its address, such as ``http://127.0.0.1:8000``, once it is healthy."""
    (port,) = free_ports(1)
    spec = EngineSpec("vllm", model=str(vllm.model), python=str(vllm.python), arguments=(*vllm.arguments, *flags))
    command = [word.replace("{port}", str(port)) for word in VllmEngine(spec).command(spec)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=vllm.environ, stdout=quiet, stderr=quiet) as process:
        try:
            _until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def ask_all(source: Path, address: str, in_flight: int) -> float:
    """Requests per second of the bare client's loop."""
    command = [PYTHON, "-m", "tests.benchmarks.bare_client", str(source), f"{address}/v1", str(in_flight), "/dev/null"]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout)
    return float(done["requests"] / done["seconds"])


def _until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("vLLM did not become healthy")
