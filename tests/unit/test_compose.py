"""docker-compose.yml without Docker: it can be read, its names lead somewhere, its variables are settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthgen.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(re.sub(r"^  # (  .*|[\w-]+:)$", r"  \1", TEXT, flags=re.MULTILINE))
"""With the GPU's section, its comment signs removed, as the file tells its reader to do."""
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "synthgen"]
ROLES = {"postgres", "rabbitmq", "redis", "s3", "migrate", "worker", "beat", "flower", "cli"}


def test_the_stack_has_every_role() -> None:
    assert set(yaml.safe_load(TEXT)["services"]) == ROLES
    assert set(SERVICES) == ROLES | {"vllm", "worker-gpu"}


def test_a_worker_waits_for_the_server_that_it_asks() -> None:
    worker = SERVICES["worker-gpu"]
    assert "http://vllm:8000/v1" in worker["command"]
    assert worker["depends_on"] == {**SERVICES["worker"]["depends_on"], "vllm": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_that_exist_and_can_tell_that_they_are_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        if how["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] != "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_the_variables_of_our_services_are_settings(name: str) -> None:
    variables = [variable for variable in SERVICES[name]["environment"] if variable.startswith("SYNTHGEN_")]
    assert len(variables) >= 5
    assert {variable.removeprefix("SYNTHGEN_").lower() for variable in variables} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", OURS)
def test_the_addresses_that_our_services_get_are_those_of_services(name: str) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        if "//" in str(value) and not value.startswith("s3://"):
            host = re.split(r"[:/]", value.partition("://")[2].rpartition("@")[2] or value)[0]
            assert host in SERVICES, variable


@pytest.mark.parametrize("name", SERVICES)
def test_data_lives_in_volumes_that_are_declared_and_ports_are_for_this_host_only(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", ()):
        assert volume.split(":")[0] in COMPOSE["volumes"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_every_secret_can_be_set_and_is_the_same_on_both_sides() -> None:
    assert set(re.findall(r"\$\{([A-Z_]+)", TEXT)) == {"SYNTHGEN_SECRET"}
    for ours, theirs in (
        ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
    ):
        assert SERVICES["worker"]["environment"][ours] == SERVICES["s3"]["environment"][theirs]


def test_the_image_holds_all_that_is_installed_and_runs_as_nobody_special() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in ("synthgen", "storage", "tasks", "cli", "migrations"):
        assert f"COPY {package} ./{package}\n" in dockerfile
    assert "\nUSER synthgen\n" in dockerfile
    assert dockerfile.index("USER synthgen") < dockerfile.index("WORKDIR /work")
