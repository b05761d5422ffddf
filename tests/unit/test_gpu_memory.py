"""What is made of nvidia-smi's answer, told by a program of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.gpu_memory import GpuMemory
from tests.fakes.clock import FakeClock


def a_program_that(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return program


def test_without_the_program_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GpuMemory(None)() is None


def test_the_memory_of_its_gpus_is_summed_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_program_that(tmp_path, f"echo $@ > {tmp_path}/asked; echo 1024; echo 3", monkeypatch)
    assert GpuMemory("0,1")() == 1027 * 2**20
    assert (tmp_path / "asked").read_text().split() == [
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
        "--id=0,1",
    ]


def test_a_reading_is_good_for_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_program_that(tmp_path, "echo 1", monkeypatch)
    clock = FakeClock()
    memory = GpuMemory(None, now=clock.monotonic)
    assert memory() == 2**20
    a_program_that(tmp_path, "echo 2", monkeypatch)
    clock.advance(20)
    assert memory() == 2**20
    clock.advance(20)
    assert memory() == 2 * 2**20


@pytest.mark.parametrize("script", ["echo no devices were found; exit 6", "echo '[N/A]'"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    a_program_that(tmp_path, script, monkeypatch)
    assert GpuMemory(None)() is None
