"""Settings become services."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthgen.errors import ServiceUnavailable
from synthgen.settings import load_settings
from tasks.wiring import connect
from tests.services.ports import free_ports


def test_a_database_that_does_not_answer_at_first_is_told_however_patient_the_work_will_be(tmp_path: Path) -> None:
    nobody = {"SYNTHGEN_DATABASE_URL": f"postgresql://me@127.0.0.1:{free_ports(1)[0]}/mine"}
    settings = load_settings(nobody, folder=tmp_path)
    with pytest.raises(ServiceUnavailable, match="does not answer"), connect(settings, patience=1e6, at_first=0.1):
        pass
