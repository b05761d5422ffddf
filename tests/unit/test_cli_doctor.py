"""What ``doctor`` finds about the engine, without starting what a worker would start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cli.doctor import Finding, _engine
from synthgen.engines.child_server import ChildServer
from synthgen.settings import Settings

NO_PROGRAM = "/no/such/program"


def engine(**settings: object) -> Finding:
    return _engine(Settings.model_validate(settings))


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ChildServer, "start", start)


def test_an_engine_without_a_server_of_its_own_is_tried() -> None:
    assert engine(engine="mock") == Finding("engine", "ok", "mock is ready to answer")


def test_without_an_engine_it_says_how_to_choose_one() -> None:
    assert engine().status == "note"


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "server", "command": "/bin/sh -c {port}"},
        {"engine": "vllm", "model": "org/name", "vllm_python": sys.executable},
    ],
)
def test_a_server_of_our_own_is_looked_at_and_not_started(settings: dict[str, object], tmp_path: Path) -> None:
    found = engine(**settings, home=tmp_path)
    assert (found.status, "a worker starts it" in found.message) == ("ok", True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "server", "command": f"{NO_PROGRAM} {{port}}"}, NO_PROGRAM),
        ({"engine": "server"}, "needs the command"),
        ({"engine": "vllm"}, "needs a model"),
        ({"engine": "vllm", "model": "m", "vllm_python": NO_PROGRAM}, NO_PROGRAM),
        ({"engine": "vllm", "model": "/no/weights", "vllm_python": sys.executable}, "no folder /no/weights"),
        ({"engine": "mock", "measure_ttft": True}, "cannot measure"),
        ({"engine": "nonsense"}, "Unknown engine"),
    ],
)
def test_what_an_engine_lacks_is_a_finding(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    found = engine(**settings, home=tmp_path)
    assert (found.check, found.status) == ("engine", "problem")
    assert message in found.message
