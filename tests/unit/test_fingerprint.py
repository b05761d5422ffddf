"""Which answers count as answers of the same weights: where no commit says it, what is in the files does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from synthgen.engines.base import EngineSpec
from synthgen.engines.fingerprint import of_path
from synthgen.engines.server import ServerEngine
from synthgen.engines.vllm import VllmEngine
from synthgen.errors import BadInput
from synthgen.models import MANIFEST

NAMED = ("--served-model-name", "tuned")
BIG = 5_000_000


def checkpoint(folder: Path, content: bytes = b"one", size: int = BIG) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content + bytes(size - len(content)))
    return folder


def vllm(model: Path | str, *arguments: str) -> str:
    return VllmEngine(EngineSpec("vllm", model=str(model), arguments=(*NAMED, *arguments))).revision


def server(*command: str, provider: str | None = None) -> str:
    return ServerEngine(EngineSpec("server", command=(*command, "--port", "{port}"), provider=provider)).revision


def test_the_next_checkpoint_under_the_same_name_is_another_model(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "step-1000"), checkpoint(tmp_path / "step-2000", b"two")
    assert vllm(first) != vllm(second)


def test_a_folder_whose_weights_were_replaced_is_another_model(tmp_path: Path) -> None:
    before = vllm(checkpoint(tmp_path / "last"))
    shutil.rmtree(tmp_path / "last")
    assert vllm(checkpoint(tmp_path / "last", b"two")) != before


def test_copies_in_other_places_and_of_other_times_are_the_same_model(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "here")
    second = checkpoint(tmp_path / "there")
    os.utime(second / "model.safetensors", (1, 1))
    (second / MANIFEST).write_text("pulled later")
    (second / ".cache").mkdir()
    (second / ".cache" / "fetched").write_text("yesterday")
    assert vllm(first) == vllm(second)


@pytest.mark.parametrize("place", [0, BIG // 3, BIG - 1])
def test_a_change_in_big_weights_is_seen_wherever_it_is(tmp_path: Path, place: int) -> None:
    folder = checkpoint(tmp_path / "weights")
    before = of_path(folder)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(max(0, place - 300_000))
        weights.write(b"x" * 300_001)
        weights.truncate(BIG)
    assert of_path(folder) != before


def test_a_file_that_has_another_name_or_is_longer_is_seen(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "weights")
    before = of_path(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    renamed = of_path(folder)
    with (folder / "other.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert len({before, renamed, of_path(folder)}) == 3


def test_a_name_on_the_hub_stays_what_its_revision_says() -> None:
    assert vllm("org/model") == ""
    assert vllm("org/model", "--revision", "v1", "--dtype", "float16", "--max-num-seqs", "8") == "v1"


@pytest.mark.parametrize(
    "change",
    [
        ("--quantization", "fp8"),
        ("--tokenizer", "org/other"),
        ("--hf-overrides", '{"rope_theta": 1}'),
        ("--hf-overrides.rope_theta", "1"),
        ("--generation-config", "vllm"),
        ("--override-generation-config", '{"top_k": 1}'),
        ("--kv-cache-dtype", "fp8"),
        ("--chat-template", "{% for message in messages %}{{ message }}{% endfor %}" * 50),
        ("--lora-modules", "x=org/lora"),
    ],
)
def test_arguments_that_change_answers_make_another_model_and_keep_the_commit(change: tuple[str, str]) -> None:
    plain, changed = vllm("org/model", "--revision", "v1"), vllm("org/model", "--revision", "v1", *change)
    assert changed.startswith(plain + "+")


def test_the_same_arguments_written_in_another_way_are_the_same_model() -> None:
    ways = [
        ("--quantization", "fp8", "--kv-cache-dtype", "fp8"),
        ("--kv_cache_dtype=fp8", "--quantization=fp8", "--max-num-seqs", "8"),
        ("-q", "fp8", "--kv-cache-dtype=fp8"),
    ]
    assert len({vllm("org/model", *way) for way in ways}) == 1


@pytest.mark.parametrize("written", ["x={}", '{{"name": "x", "path": "{}"}}'])
def test_an_adapter_is_what_its_files_are(tmp_path: Path, written: str) -> None:
    folders = [checkpoint(tmp_path / "v1"), checkpoint(tmp_path / "copy"), checkpoint(tmp_path / "v2", b"two")]
    first, copy, second = (vllm("org/model", "--lora-modules", written.format(folder)) for folder in folders)
    assert first == copy != second


def test_a_chat_template_is_what_its_file_says(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("one")
    before = vllm("org/model", "--chat-template", str(template))
    template.write_text("two")
    assert vllm("org/model", "--chat-template", str(template)) != before


def test_two_commands_are_two_models_unless_a_provider_says_that_they_agree(tmp_path: Path) -> None:
    assert server("serve", "--alias", "m", "-m", "a") != server("serve", "--alias", "m", "-m", "b")
    assert server("serve", "-m", "a", provider="ours") == server("serve", "-m", "b", provider="ours") == ""


def test_a_commands_weights_are_what_is_in_them_and_its_other_files_are_not_looked_at(tmp_path: Path) -> None:
    log, weights = tmp_path / "log", tmp_path / "model.gguf"
    log.write_text("one line")
    weights.write_bytes(b"one")
    before = server("serve", "--log", str(log), "-m", str(weights))
    log.write_text("two lines")
    assert server("serve", "--log", str(log), "-m", str(weights)) == before
    weights.write_bytes(b"two")
    assert server("serve", "--log", str(log), "-m", str(weights)) != before


def test_weights_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = checkpoint(tmp_path / "weights")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"weights cannot be read .*: check that this user may read"):
        vllm(folder)
