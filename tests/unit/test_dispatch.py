"""What is made of a broker that does not take our messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from amqp.exceptions import AccessRefused, NotAllowed, PreconditionFailed
from kombu.exceptions import OperationalError

from synthgen.errors import ServiceUnavailable
from tasks.app import app
from tasks.dispatch import CeleryDispatcher


def dispatcher_whose_broker(raises: Exception, monkeypatch: pytest.MonkeyPatch) -> CeleryDispatcher:
    @contextlib.contextmanager
    def producer(*_: object) -> Iterator[None]:
        raise raises
        yield

    monkeypatch.setattr(app, "producer_or_acquire", producer)
    monkeypatch.setenv("SYNTHGEN_BROKER_URL", "amqp://us:secret@broker.example:5672/vhost")
    return CeleryDispatcher()


@pytest.mark.parametrize(
    "refusal",
    [
        AccessRefused("Login was refused", (0, 0), "403", "ACCESS_REFUSED"),
        NotAllowed("vhost not found", (10, 40), "530", "NOT_ALLOWED"),
        PreconditionFailed("inequivalent arg 'durable'", (50, 10), "406", "PRECONDITION_FAILED"),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_broker_that_refuses_us_is_told_in_a_sentence(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = dispatcher_whose_broker(refusal, monkeypatch)
    with pytest.raises(ServiceUnavailable, match=r"The broker at .*broker\.example.* refuses us: ") as told:
        dispatcher.send("gpu", "batch_1", [0])
    assert str(refusal) in str(told.value)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("silence", [OperationalError("no reply"), TimeoutError("no reply")])
def test_a_broker_that_is_away_does_not_answer(silence: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = dispatcher_whose_broker(silence, monkeypatch)
    with pytest.raises(ServiceUnavailable, match="does not answer: no reply"):
        dispatcher.send("gpu", "batch_1", [0])
