"""What ``doctor`` finds about the engine, without starting what a worker would start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

import tasks.wiring
from cli.doctor import Finding, _engine, _mark
from cli.main import main
from synthgen.engines.child_server import ChildServer
from synthgen.ports import Services
from synthgen.settings import Settings, load_settings
from synthgen.storage_mark import MARK, is_ours
from tests.workshop import Workshop

NO_PROGRAM = "/no/such/program"


def engine(**settings: object) -> Finding:
    return _engine(Settings.model_validate(settings))


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ChildServer, "start", start)


@pytest.mark.parametrize("home", ["file", "file/home"])
def test_a_home_that_cannot_be_used_is_a_finding_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYNTHGEN_HOME", str(tmp_path / home))
    done = CliRunner().invoke(main, ["doctor", "--json"])
    found = {finding["check"]: finding for finding in orjson.loads(done.stdout)}
    assert (done.exit_code, found["database"]["status"], found["storage"]["status"]) == (1, "problem", "problem")
    assert "set SYNTHGEN_HOME to a folder that can be written" in found["database"]["message"]
    assert {"disk", "packages"} <= set(found)
    for command in (["list"], ["db", "stop"], ["db", "status"]):
        assert "Traceback" not in CliRunner().invoke(main, command).output
    assert "set SYNTHGEN_HOME" in CliRunner().invoke(main, ["list"]).stderr


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


def test_a_storage_that_another_database_has_marked_is_told(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def connect(settings: object, **_: object) -> Iterator[Services]:
        yield workshop.services

    monkeypatch.setattr(tasks.wiring, "connect", connect)
    assert is_ours(workshop.services)
    assert list(_mark(load_settings({}))) == []
    workshop.objects.put(MARK, b"another")
    (found,) = _mark(load_settings({}))
    assert (found.check, found.status) == ("storage", "note")
    assert workshop.store.identity() in found.message
