"""What becomes of a test whose service is not there: at home it is skipped with the reason, on CI it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} On CI every service must be there.", pytrace=False)
    pytest.skip(reason)
