"""Sends hints to pools: one small message a shard, confirmed by the broker."""

from __future__ import annotations

from collections.abc import Sequence

from kombu.exceptions import KombuError, OperationalError
from kombu.transport.pyamqp import Transport

from synthgen.errors import ServiceUnavailable
from synthgen.settings import load_settings, mask_url
from tasks.app import app
from tasks.queues import pool_queue

_PATIENCE = {"max_retries": 3, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 1.0}
_CONFIRMED = 4.0
"""Seconds for the broker to confirm one message: one that is short of memory or disk takes it and says nothing."""
_REFUSALS = (KombuError, *Transport.connection_errors, *Transport.channel_errors)
"""A wrong password, an unknown vhost, a queue that was declared otherwise: Celery lets AMQP's own errors through."""


class CeleryDispatcher:
    """The queue is declared with the first message, so a pool without workers holds its work durably."""

    def __init__(self) -> None:
        self._settings = load_settings()

    def send(self, pool: str, batch_id: str, numbers: Sequence[int]) -> None:
        """Raises ServiceUnavailable; a message expires when upkeep would send it again anyway."""
        queue = pool_queue(self._settings, pool)
        try:
            with app.producer_or_acquire() as producer:
                for number in numbers:
                    app.send_task(
                        "synthgen.run_shard",
                        args=(batch_id, number),
                        queue=queue,
                        producer=producer,
                        expires=self._settings.resend_after,
                        expiration=self._settings.resend_after,
                        confirm_timeout=_CONFIRMED,
                        retry=True,
                        retry_policy=_PATIENCE,
                    )
        except (OperationalError, OSError) as error:
            raise ServiceUnavailable(f"The broker at {self._where} does not answer: {error}.") from error
        except _REFUSALS as error:
            raise ServiceUnavailable(f"The broker at {self._where} refuses us: {error}.") from error

    @property
    def _where(self) -> str:
        return mask_url(self._settings.broker_url or "the message folder")
