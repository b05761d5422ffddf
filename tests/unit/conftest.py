"""How hypothesis works here: the same examples on every run, and no time limit that a busy machine would break."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("unit")
