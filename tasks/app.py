"""The Celery app: ``celery -A tasks.app worker|beat|flower`` and ``synthgen worker`` both start here."""

from importlib import import_module
from typing import Any

from celery import Celery

app = Celery("synthgen", include=["tasks.shards", "tasks.worker"])
app.config_from_object("celeryconfig")


@app.on_configure.connect  # type: ignore[untyped-decorator]
def _take_our_own(**_: Any) -> None:
    """Celery looks in the current folder first, where another project's ``celeryconfig.py`` may lie."""
    import_module("celeryconfig")
