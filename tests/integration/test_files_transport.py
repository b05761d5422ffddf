"""Messages as files, as several workers of one host write and take them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kombu import Connection, Exchange, Message, Queue
from kombu.transport.virtual import BrokerState

from tasks.files_transport import Transport

QUEUE = Queue("synthgen.gpu", Exchange("synthgen", type="direct"), routing_key="gpu")
DESERTED = Queue("synthgen.none", QUEUE.exchange, routing_key="none")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for name in ("messages", "control"):
        (tmp_path / name).mkdir()
    return tmp_path


def connection(folder: Path) -> Connection:
    """As of a process of its own: kombu keeps what it has declared for all connections of one."""
    of_its_own = type("Transport", (Transport,), {"global_state": BrokerState()})
    options = {"data_folder_in": folder / "messages", "data_folder_out": folder / "messages"}
    return Connection(transport=of_its_own, transport_options={**options, "control_folder": folder / "control"})


def send(folder: Path, numbers: range, *, queue: Queue = QUEUE, expires_in: float = 60.0) -> None:
    expires = (datetime.now(UTC) + timedelta(seconds=expires_in)).isoformat()
    with connection(folder) as opened:
        producer = opened.Producer()
        for number in numbers:
            producer.publish(
                number,
                exchange=queue.exchange,
                routing_key=queue.routing_key,
                declare=[queue],
                headers={"expires": expires},
            )


def take_all(folder: Path) -> list[int]:
    """Until there has been nothing for half a second."""
    taken: list[int] = []

    def take(body: int, message: Message) -> None:
        taken.append(body)
        message.ack()

    with connection(folder) as opened, opened.Consumer([QUEUE], callbacks=[take]):
        while True:
            try:
                opened.drain_events(timeout=0.5)
            except TimeoutError:
                return taken


def test_each_of_many_messages_is_taken_once_by_one_of_many_takers(folder: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = [threads.submit(take_all, folder) for _ in range(4)]
        sent = [threads.submit(send, folder, range(start, start + 50)) for start in range(0, 200, 50)]
        assert [done.result() for done in sent] == [None] * 4
        numbers = Counter(number for each in taken for number in each.result())
    assert numbers == Counter(range(200))
    assert list((folder / "messages").iterdir()) == []


def test_expired_messages_are_dropped_in_one_look_at_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for queue in (QUEUE, DESERTED):
        send(folder, range(20), queue=queue, expires_in=-10)
    send(folder, range(20, 21))
    looks, iterdir = [], Path.iterdir

    def counted(path: Path) -> Iterator[Path]:
        looks.append(path)
        return iterdir(path)

    with connection(folder) as opened:
        channel = opened.channel()
        monkeypatch.setattr(Path, "iterdir", counted)
        assert channel.basic_get(QUEUE.name, no_ack=True).payload == 20
        monkeypatch.undo()
    assert len(looks) == 1
    assert list((folder / "messages").iterdir()) == []


def test_an_expired_message_that_another_is_taking_is_left_to_it(folder: Path) -> None:
    send(folder, range(1), expires_in=-10)
    (message,) = (folder / "messages").iterdir()
    taken = message.rename(message.with_name(f".{message.name}.taker"))
    assert take_all(folder) == []
    assert taken.exists()


def test_what_is_still_being_written_is_not_seen(folder: Path) -> None:
    send(folder, range(1))
    (message,) = (folder / "messages").iterdir()
    message.rename(message.with_name(f".{message.name}"))
    assert take_all(folder) == []
