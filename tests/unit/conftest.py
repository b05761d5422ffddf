"""Lanes that are closed in the end, and hypothesis with the same examples on every run and no time limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fakes.scripted_engine import Lanes

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("unit")


@pytest.fixture
def lane_with() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()
