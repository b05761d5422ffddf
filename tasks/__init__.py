"""Celery and nothing but Celery, and the one place where implementations meet the core's ports (``wiring``)."""
