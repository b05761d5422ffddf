"""What ``run`` does with the files around a batch: its inputs, and the answers that it has paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tasks.wiring
from cli.main import main
from synthgen.ports import Services
from tests.workshop import Workshop

Synthgen = Callable[..., Result]
LINE = b'{"prompt": "a"}\n'


@pytest.fixture
def synthgen(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Synthgen:
    """Runs a command on the workshop's services, beside ``q.jsonl``."""

    @contextmanager
    def connect(settings: object, **_: object) -> Iterator[Services]:
        yield workshop.services

    monkeypatch.setattr(tasks.wiring, "connect", connect)
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_bytes(LINE)

    def run(*arguments: str, exits: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == exits, done.output
        return done

    return run


@pytest.mark.parametrize("output", [("-o", "q.jsonl"), ("-o", "-", "--errors", "./q.jsonl")])
def test_an_input_is_not_replaced_by_its_answers_even_by_force(synthgen: Synthgen, output: tuple[str, ...]) -> None:
    refused = synthgen("run", "q.jsonl", "--engine", "mock", "--force", *output, exits=2).stderr
    assert "q.jsonl is an input of this batch" in refused
    assert Path("q.jsonl").read_bytes() == LINE


def test_an_input_that_is_not_there_is_told_before_the_engine_starts(synthgen: Synthgen) -> None:
    told = synthgen("run", "none.jsonl", "--engine", "server", "--command", "false {port}", exits=2).stderr
    assert "Cannot read none.jsonl: there is no such file." in told


def test_what_stands_after_two_dashes_is_for_vllm_and_no_input(synthgen: Synthgen) -> None:
    words = ("--", "--max-model-len", "1024", "--port", "1")
    assert "--port" in synthgen("run", "q.jsonl", "--engine", "vllm", "--model", "m", *words, exits=2).stderr
    assert "no use for what stands after --" in synthgen("run", "q.jsonl", "--engine", "mock", *words, exits=2).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Only Linux has a device that is always full.")
def test_answers_that_find_no_room_are_told_where_they_are(synthgen: Synthgen, workshop: Workshop) -> None:
    told = synthgen("run", "q.jsonl", "--engine", "mock", "-o", "/dev/full", exits=1).stderr
    assert "Error: Cannot write /dev/full: no space left on device. The batch is completed: " in told
    [batch] = workshop.store.list_batches()
    assert f"'synthgen results {batch.batch.id} -o FILE' writes its answers." in told
    assert "Cannot write /dev/full: no space" in synthgen("results", "last", "-o", "/dev/full", exits=1).stderr
    assert synthgen("results", "last", "--text").stdout


def test_a_database_that_goes_away_in_the_middle_of_a_run_is_waited_for_as_workers_do(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    @contextmanager
    def connect(settings: object, **options: object) -> Iterator[Services]:
        asked.append(options)
        yield workshop.services

    monkeypatch.setattr(tasks.wiring, "connect", connect)
    monkeypatch.setenv("SYNTHGEN_DATABASE_PATIENCE", "123")
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_bytes(LINE)
    for command in (["run", "q.jsonl", "--engine", "mock"], ["list"]):
        assert CliRunner().invoke(main, command).exit_code == 0
    assert [(options["patience"], options["at_first"]) for options in asked] == [
        (123, tasks.wiring.SHORT_PATIENCE),
        (tasks.wiring.SHORT_PATIENCE, None),
    ]
