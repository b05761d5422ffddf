"""Names and arguments of queues, in one place: a queue that exists cannot be declared again with others."""

from __future__ import annotations

from kombu.entity import Exchange, Queue

from synthgen.settings import Settings


def pool_queue(settings: Settings, pool: str) -> Queue:
    """Where a pool's workers hear of shards."""
    return _queue(settings, f"{settings.queue_prefix}.{pool}")


def upkeep_queue(settings: Settings) -> Queue:
    """Where every worker hears that upkeep is due."""
    return _queue(settings, f"{settings.queue_prefix}-upkeep")


def _queue(settings: Settings, name: str) -> Queue:
    """Durable and replicated on a real broker; kombu's filesystem transport knows no arguments."""
    arguments = {"x-queue-type": "quorum"} if _is_rabbitmq(settings) else None
    exchange = Exchange(settings.queue_prefix, type="direct", durable=True)
    return Queue(name, exchange=exchange, routing_key=name, durable=True, queue_arguments=arguments)


def _is_rabbitmq(settings: Settings) -> bool:
    return (settings.broker_url or "").startswith(("amqp", "pyamqp"))
