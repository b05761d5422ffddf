"""The Celery app: ``celery -A tasks.app worker|beat|flower`` and ``synthgen worker`` both start here."""

from celery import Celery

app = Celery("synthgen", include=["tasks.shards", "tasks.worker"])
app.config_from_object("celeryconfig")
