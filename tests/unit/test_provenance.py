"""What every answer says of its making: engine and version, weights, parameters, and times where they were measured."""

from __future__ import annotations

from typing import Any

import pytest

from synthgen.response import Reply
from synthgen.run_shard import run_shard
from tests.fakes.scripted_engine import ScriptedEngine
from tests.workshop import REFUSED, Killed, Workshop, echo, failing, questions


def engine_of(version: str | None, revision: str = "", *, ttft_ms: float | None = None) -> ScriptedEngine:
    def answer(request: Any, _: int) -> Reply:
        return Reply(echo(request, 0).body, 2, 3, ttft_ms=ttft_ms, itl_ms=ttft_ms and ttft_ms / 4)

    engine = ScriptedEngine(answer)
    engine.version, engine.revision = version, revision
    return engine


def made_by(line: dict[str, Any]) -> tuple[str, str | None, str | None]:
    ours = line["synthgen"]
    return ours["engine"], ours["engine_version"], ours["revision"]


def test_an_answer_names_the_engine_its_version_and_the_weights(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    workshop.run(batch, worker=workshop.another_worker(engine_of("0.32.0", "9f3c1b")))
    (line,) = workshop.results(batch)
    assert made_by(line) == ("scripted", "0.32.0", "9f3c1b")


def test_an_answer_carries_the_parameters_of_its_request_and_not_the_prompt(workshop: Workshop) -> None:
    rows = [{"prompt": "a", "temperature": 0.5, "seed": 7, "user": "u1", "stop": ["x"]}, {"prompt": "b"}]
    batch = workshop.submitted(rows)
    workshop.run(batch)
    first, second = workshop.results(batch)
    assert first["synthgen"]["parameters"] == {"temperature": 0.5, "seed": 7, "stop": ["x"]}
    assert second["synthgen"]["parameters"] == {}


def test_a_failure_says_as_much_as_a_success(workshop: Workshop) -> None:
    engine = ScriptedEngine(failing({"line-1": REFUSED}))
    engine.version = "1.5"
    batch = workshop.submitted(questions(1, temperature=0))
    workshop.run(batch, worker=workshop.another_worker(engine))
    (line,) = workshop.results(batch)
    assert made_by(line) == ("scripted", "1.5", None)
    assert line["synthgen"]["parameters"] == {"temperature": 0}


def test_a_cached_answer_names_what_made_it_and_not_what_runs_now(workshop: Workshop) -> None:
    workshop.run(workshop.submitted(questions(1)), worker=workshop.another_worker(engine_of("1.0", "old", ttft_ms=8.0)))
    later = workshop.submitted(questions(2))
    workshop.run(later, worker=workshop.another_worker(engine_of("2.0", "new", ttft_ms=4.0)))
    cached, asked = workshop.results(later)
    assert cached["synthgen"]["cached"]
    assert made_by(cached) == ("scripted", "1.0", "old")
    assert made_by(asked) == ("scripted", "2.0", "new")
    assert "ttft_ms" not in cached["synthgen"]
    assert (asked["synthgen"]["ttft_ms"], asked["synthgen"]["itl_ms"]) == (4.0, 1.0)


def test_times_outlive_a_crash_between_checkpoint_and_seal(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = workshop.submitted(questions(1))
    worker = workshop.another_worker(engine_of("1.0", "ab", ttft_ms=8.0))

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(workshop.objects, "put", die)
        with pytest.raises(Killed):
            run_shard(workshop.services, worker, batch.id)
    workshop.store.rescue(owners=[workshop.services.owner])
    workshop.run(batch, worker=workshop.another_worker(engine_of("2.0")))
    (line,) = workshop.results(batch)
    assert not line["synthgen"]["cached"]
    assert made_by(line) == ("scripted", "1.0", "ab")
    assert (line["synthgen"]["ttft_ms"], line["synthgen"]["itl_ms"]) == (8.0, 2.0)


def test_without_measuring_an_answer_speaks_of_no_times(workshop: Workshop) -> None:
    batch = workshop.submitted(questions(1))
    workshop.run(batch)
    (line,) = workshop.results(batch)
    assert not {"ttft_ms", "itl_ms"} & line["synthgen"].keys()
