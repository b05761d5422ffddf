"""How hypothesis works here (the same examples on every run, no time limit that a busy machine would break), lanes that
are closed in the end, and a workshop for the use cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.fakes.scripted_engine import Lanes
from tests.workshop import Workshop

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("unit")


@pytest.fixture
def workshop_with() -> Iterator[Callable[..., Workshop]]:
    made: list[Workshop] = []

    def make(*args: Any, **options: Any) -> Workshop:
        made.append(Workshop(*args, **options))
        return made[-1]

    yield make
    for workshop in made:
        workshop.close()


@pytest.fixture
def workshop(workshop_with: Callable[..., Workshop]) -> Workshop:
    return workshop_with()


@pytest.fixture
def lane_with() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()
