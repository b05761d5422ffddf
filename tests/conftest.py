"""What every test stands on: the services that may be asked for, and an environment without surprises."""

from __future__ import annotations

import os

import pytest

pytest_plugins = [
    "tests.services.postgres",
    "tests.services.rabbitmq",
    "tests.services.redis",
    "tests.services.s3",
    "tests.services.vllm",
]

_STRAY = ("SYNTHGEN_", "AWS_", "OPENAI_")
_KEPT = "SYNTHGEN_TEST_"


@pytest.fixture(autouse=True, scope="session")
def _no_stray_variables() -> None:
    """What the developer has set for real runs must not reach a test, nor the processes that it starts."""
    for name in list(os.environ):
        if name.startswith(_STRAY) and not name.startswith(_KEPT):
            del os.environ[name]
