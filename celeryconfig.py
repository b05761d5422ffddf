"""Celery's own settings, made from ``Settings`` and nothing else: broker, queues, routing, events, beat.

A message is a hint: it is acknowledged when a worker starts on it, and whatever happens to it costs time, never data.
So there are no late acknowledgements, no retries by Celery and no result that anything depends on.
"""

from pathlib import Path

from synthgen.settings import load_settings
from synthgen.sharding import default_shards
from tasks.queues import pool_queue, upkeep_queue

_settings = load_settings()


def _on_files(folder: Path) -> dict[str, object]:
    """Enough for several processes of one host, because losing a message is harmless."""
    for name in ("messages", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
    }


broker_url = _settings.broker_url or "filesystem://"
broker_transport = None if _settings.broker_url else "tasks.files_transport:Transport"
broker_transport_options = {"confirm_publish": True} if _settings.broker_url else _on_files(_settings.home / "queue")
broker_connection_retry_on_startup = True
broker_channel_error_retry = True
broker_heartbeat = 10  # a worker that hangs or is cut off must not keep messages for longer than its lease
broker_connection_max_retries = None  # a worker waits for its broker for as long as it takes
result_backend = _settings.redis_url
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]
task_queues = [pool_queue(_settings, _settings.pool), upkeep_queue(_settings)]
task_default_queue = task_queues[0].name
task_default_exchange = _settings.queue_prefix
task_default_routing_key = task_default_queue
task_routes = {"synthgen.upkeep": {"queue": task_queues[1].name}}
task_send_sent_event = False  # it would be one more message for each, and one whose confirmation has no time limit
worker_send_task_events = True
worker_pool = "threads"
worker_concurrency = _settings.shards or default_shards(_settings.in_flight or 256)
worker_prefetch_multiplier = 1
# Both only matter to late acknowledgements, and are set so that a lost connection is not a page of warnings.
worker_cancel_long_running_tasks_on_connection_loss = True
worker_enable_prefetch_count_reduction = False
worker_hijack_root_logger = False
worker_redirect_stdouts = False
beat_schedule = {
    "upkeep": {
        "task": "synthgen.upkeep",
        "schedule": _settings.upkeep_every,
        "options": {"expires": 2 * _settings.upkeep_every},
    }
}
beat_scheduler = "celery.beat:Scheduler"  # without a file: the one interval needs no memory
timezone = "UTC"
