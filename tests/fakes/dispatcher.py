"""A dispatcher that writes down what it was asked to send, and can be away."""

from __future__ import annotations

from collections.abc import Sequence

from synthgen.errors import ServiceUnavailable


class FakeDispatcher:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str, int]] = []
        """Pool, batch id, shard number; in order of sending."""
        self.away = False

    def send(self, pool: str, batch_id: str, numbers: Sequence[int]) -> None:
        if self.away:
            raise ServiceUnavailable("The broker does not answer.")
        self.sent.extend((pool, batch_id, number) for number in numbers)
