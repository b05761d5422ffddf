"""What a vLLM worker makes of a pulled model: the folder is found by its name, and everything stays on this host."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.vllm import VllmEngine
from synthgen.engines.vllm_arguments import argument
from synthgen.errors import BadInput
from synthgen.models import MANIFEST, PulledFile, PulledModel, read_manifest, resolve_model, write_manifest

REPO = "tiny/llama"


def pulled(models: Path, commit: str, *, revision: str = "main", day: int = 1) -> PulledModel:
    folder = models / "tiny--llama" / commit
    folder.mkdir(parents=True)
    files = {"model.safetensors": PulledFile(7, "sha256:ab"), "config.json": PulledFile(3, None)}
    model = PulledModel(REPO, revision, commit, datetime(2026, 1, day, tzinfo=UTC), files, folder)
    write_manifest(model)
    return model


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    model = pulled(tmp_path, "c1")
    assert read_manifest(model.folder) == model
    assert model.size == 10


def test_a_name_means_what_was_pulled_last(tmp_path: Path) -> None:
    assert resolve_model(tmp_path, REPO) is None
    pulled(tmp_path, "c1")
    last = pulled(tmp_path, "c2", revision="v2", day=2)
    assert resolve_model(tmp_path, REPO) == last
    assert resolve_model(tmp_path, "tiny/other") is None


def test_a_revision_means_its_newest_commit_or_the_commit_itself(tmp_path: Path) -> None:
    first, second = pulled(tmp_path, "c1"), pulled(tmp_path, "c2", day=2)
    other = pulled(tmp_path, "c3", revision="v2", day=3)
    assert resolve_model(tmp_path, REPO, "main") == second
    assert resolve_model(tmp_path, REPO, "c1") == first
    assert resolve_model(tmp_path, REPO, "v2") == other
    assert resolve_model(tmp_path, REPO, "v3") is None


def test_a_pull_that_did_not_end_is_not_found(tmp_path: Path) -> None:
    model = pulled(tmp_path, "c1")
    (model.folder / MANIFEST).unlink()
    assert resolve_model(tmp_path, REPO) is None
    assert resolve_model(tmp_path, REPO, "main") is None


@pytest.mark.parametrize("name", ["/data/weights", "./tiny/llama", "..", ".", "a/b/c", "tiny/llama\n"])
def test_what_is_no_name_of_a_repository_is_never_looked_up(tmp_path: Path, name: str) -> None:
    pulled(tmp_path, "c1")
    (tmp_path / "current").write_text("tiny--llama/c1")
    assert resolve_model(tmp_path, name) is None


def test_a_manifest_that_makes_no_sense_is_told(tmp_path: Path) -> None:
    model = pulled(tmp_path, "c1")
    (model.folder / MANIFEST).write_text("{half")
    with pytest.raises(BadInput, match="pull the model again"):
        resolve_model(tmp_path, REPO)


def engine(models: Path, *arguments: str, model: str = REPO) -> VllmEngine:
    return VllmEngine(EngineSpec("vllm", model=model, models_dir=models, arguments=arguments))


def started_with(models: Path, *arguments: str, model: str = REPO) -> tuple[list[str], dict[str, str]]:
    spec = EngineSpec("vllm", model=model, models_dir=models, arguments=arguments)
    found = VllmEngine(spec)
    return found.command(spec), found.environ(spec)


def test_a_pulled_model_is_loaded_from_its_folder_offline_and_served_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = pulled(tmp_path, "c1")
    command, environ = started_with(tmp_path)
    assert argument("--model", command) == str(model.folder)
    assert argument("--served-model-name", command) == REPO
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert engine(tmp_path).revision == "c1"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tokenizer", "org/x"),
        ("--speculative-config", '{"model": "org/draft"}'),
        ("--speculative_config.model", "org/draft"),
        ("-sc", '{"model": "org/draft"}'),
        ("--lora-modules", "x=org/x"),
        ("--hf-config-path", "org/x"),
        ("--trust-remote-code",),
    ],
)
def test_a_pulled_model_that_needs_more_than_was_pulled_is_not_kept_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    pulled(tmp_path, "c1")
    assert "HF_HUB_OFFLINE" not in started_with(tmp_path, *arguments)[1]


def test_whoever_says_whether_the_hub_may_be_asked_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    pulled(tmp_path, "c1")
    assert started_with(tmp_path)[1]["HF_HUB_OFFLINE"] == "0"


def test_a_name_of_the_users_own_stays(tmp_path: Path) -> None:
    pulled(tmp_path, "c1")
    command, _ = started_with(tmp_path, "--served_model_name=mine")
    assert command.count("--served-model-name") == 0
    assert argument("--served-model-name", command) == "mine"


def test_a_revision_among_the_arguments_chooses_the_commit(tmp_path: Path) -> None:
    first = pulled(tmp_path, "c1", revision="v1")
    pulled(tmp_path, "c2", day=2)
    command, _ = started_with(tmp_path, "--revision", "v1")
    assert argument("--model", command) == str(first.folder)
    assert engine(tmp_path, "--revision", "v1").revision == "c1"


def test_a_model_that_was_not_pulled_is_vllms_own_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    command, environ = started_with(tmp_path, "--revision", "v1")
    assert argument("--model", command) == REPO
    assert argument("--served-model-name", command) is None
    assert "HF_HUB_OFFLINE" not in environ
    assert engine(tmp_path, "--revision", "v1").revision == "v1"
    assert engine(tmp_path).revision == ""


def test_a_commit_that_is_asked_in_another_way_is_known_as_such(tmp_path: Path) -> None:
    pulled(tmp_path, "c1")
    assert engine(tmp_path, "--dtype", "bfloat16", "--enforce-eager").revision == "c1"
    assert engine(tmp_path, "--quantization", "fp8").revision.startswith("c1+")
