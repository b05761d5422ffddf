"""Weights pulled over real HTTP: what arrives, what is not fetched twice, what a bad hub does to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from huggingface_hub import constants

from storage.model_hub import pull
from synthgen.errors import BadInput, ServiceUnavailable, SynthgenError
from synthgen.models import MANIFEST, PulledModel, resolve_model
from tests.stub_hub import StubHub

REPO = "tiny/llama"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(250)) * 40,
    "tokenizer/vocab.json": b"{}",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)  # ten pieces of a file that is no burden
    with StubHub() as stub:
        stub.add(REPO, FILES)
        yield stub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_all_files_arrive_below_the_commit_that_the_branch_meant(hub: StubHub, models: Path) -> None:
    model, came = pull(models, REPO, endpoint=hub.url)
    assert model.folder == models / "tiny--llama" / hub.revisions[REPO]["main"]
    assert contents(model.folder) == FILES
    assert came == model.size == sum(map(len, FILES.values()))
    assert resolve_model(models, REPO) == model


def test_the_manifest_says_what_lies_there(hub: StubHub, models: Path) -> None:
    hub.add(REPO, FILES, revision="refs/pr/1")
    model, _ = pull(models, REPO, revision="refs/pr/1", endpoint=hub.url)
    told = orjson.loads((model.folder / MANIFEST).read_bytes())
    assert (told["repository"], told["revision"], told["commit"]) == (REPO, "refs/pr/1", model.commit)
    assert {name: file["size"] for name, file in told["files"].items()} == {n: len(c) for n, c in FILES.items()}
    assert told["pulled_at"].endswith("+00:00")


def test_a_second_pull_transfers_nothing(hub: StubHub, models: Path) -> None:
    first, _ = pull(models, REPO, endpoint=hub.url)
    hub.downloads()
    second, came = pull(models, REPO, endpoint=hub.url)
    assert (hub.downloads(), came) == ([], 0)
    assert second.files == first.files


def test_a_new_commit_takes_over_the_files_that_did_not_change(hub: StubHub, models: Path) -> None:
    old, _ = pull(models, REPO, endpoint=hub.url)
    hub.downloads()
    hub.add(REPO, {**FILES, "config.json": b'{"model_type": "qwen"}'})
    new, _ = pull(models, REPO, endpoint=hub.url)
    assert hub.downloads() == ["config.json"]
    assert contents(new.folder)["model.safetensors"] == FILES["model.safetensors"]
    assert contents(old.folder) == FILES
    assert resolve_model(models, REPO) == new
    assert resolve_model(models, REPO, old.commit) == old


def test_only_what_matches_comes_and_the_rest_can_follow(hub: StubHub, models: Path) -> None:
    small, _ = pull(models, REPO, include=["*.json"], endpoint=hub.url)
    assert set(small.files) == {"config.json", "tokenizer/vocab.json"}
    hub.downloads()
    whole, _ = pull(models, REPO, endpoint=hub.url)
    assert hub.downloads() == ["model.safetensors"]
    again, _ = pull(models, REPO, include=["config.json"], endpoint=hub.url)
    assert set(again.files) == set(whole.files) == set(FILES)


def test_progress_counts_the_bytes_that_are_there(hub: StubHub, models: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    pull(models, REPO, endpoint=hub.url, notify=lambda *step: told.append(step))
    size = sum(map(len, FILES.values()))
    assert told[-1] == ("pulling", size, size)
    pull(models, REPO, endpoint=hub.url, notify=lambda *step: told.append(step))
    assert told[-1] == ("pulling", size, size)


def test_a_broken_connection_is_taken_up_where_it_broke(hub: StubHub, models: Path) -> None:
    hub.break_off["model.safetensors"] = 4_500
    model, _ = pull(models, REPO, endpoint=hub.url)
    starts = [start for path, start in hub.ranges if path == "model.safetensors"]
    assert starts == [0, 4_000]
    assert contents(model.folder) == FILES


def test_what_came_before_an_interrupt_is_not_fetched_again(hub: StubHub, models: Path) -> None:
    def interrupt(_: str, done: int, __: int | None) -> None:
        if hub.held.is_set() and done >= 6_000:
            hub.let_go.set()
            raise KeyboardInterrupt

    hub.hold["model.safetensors"] = 6_500
    with pytest.raises(KeyboardInterrupt):
        pull(models, REPO, endpoint=hub.url, notify=interrupt)
    assert resolve_model(models, REPO) is None
    hub.hold.clear()
    hub.ranges.clear()
    model, came = pull(models, REPO, endpoint=hub.url)
    assert hub.ranges == [("model.safetensors", 6_000)]
    assert came == 4_000
    assert contents(model.folder) == FILES


def test_a_damaged_file_is_dropped_and_told(hub: StubHub, models: Path) -> None:
    hub.damaged = {"model.safetensors"}
    with pytest.raises(ServiceUnavailable, match=r"model\.safetensors came damaged"):
        pull(models, REPO, endpoint=hub.url)
    assert resolve_model(models, REPO) is None
    hub.damaged = set()
    model, _ = pull(models, REPO, endpoint=hub.url)
    assert contents(model.folder) == FILES


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_part_that_holds_something_else_is_found_out(hub: StubHub, models: Path, path: str) -> None:
    part = models / "tiny--llama" / ".parts" / hub.revisions[REPO]["main"] / path
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 10)
    with pytest.raises(ServiceUnavailable, match="came damaged"):
        pull(models, REPO, endpoint=hub.url)
    model, _ = pull(models, REPO, endpoint=hub.url)
    assert contents(model.folder) == FILES


def test_a_file_that_was_cut_off_afterwards_is_fetched_anew(hub: StubHub, models: Path) -> None:
    model, _ = pull(models, REPO, endpoint=hub.url)
    (model.folder / "model.safetensors").write_bytes(b"half")
    pull(models, REPO, endpoint=hub.url)
    assert contents(model.folder) == FILES


def test_two_pulls_at_once_fetch_everything_once(hub: StubHub, models: Path) -> None:
    hub.hold["model.safetensors"] = 5_000
    waiting = threading.Event()
    pulled: list[PulledModel] = []

    def second(step: str, *_: Any) -> None:
        if step.startswith("waiting"):
            waiting.set()

    def run(notify: Callable[..., None]) -> threading.Thread:
        thread = threading.Thread(target=lambda: pulled.append(pull(models, REPO, endpoint=hub.url, notify=notify)[0]))
        thread.start()
        return thread

    threads = [run(lambda *_: None)]
    assert hub.held.wait(20)
    threads.append(run(second))
    assert waiting.wait(20)
    hub.let_go.set()
    for thread in threads:
        thread.join(20)
    assert [model.files for model in pulled] == [pulled[0].files] * 2
    assert contents(pulled[0].folder) == FILES
    assert [start for path, start in hub.ranges if path == "model.safetensors"] == [0]


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: StubHub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    pull(models, REPO, endpoint=hub.url)
    assert {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)} == set(hub.authorizations)


def sentence(hub: StubHub, models: Path, repository: str = REPO, **options: Any) -> SynthgenError:
    with pytest.raises(SynthgenError) as caught:
        pull(models, repository, **{"endpoint": hub.url, **options})
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return caught.value


def test_a_name_that_nobody_has_is_told(hub: StubHub, models: Path) -> None:
    error = sentence(hub, models, "tiny/lama")
    assert isinstance(error, BadInput)
    assert "There is no model 'tiny/lama'" in str(error)
    assert not models.exists()


def test_a_revision_that_is_not_there_is_told(hub: StubHub, models: Path) -> None:
    assert "has no revision 'v9'" in str(sentence(hub, models, revision="v9"))


def test_a_name_that_cannot_be_one_is_told(hub: StubHub, models: Path) -> None:
    assert "ORGANISATION/NAME" in str(sentence(hub, models, "https://hub/tiny/llama"))
    assert hub.requests == []


def test_a_private_and_a_gated_model_ask_for_the_token(hub: StubHub, models: Path) -> None:
    hub.token = "hf_secret"
    assert "HF_TOKEN" in str(sentence(hub, models))
    hub.gated.add(REPO)
    assert "is gated" in str(sentence(hub, models))


@pytest.mark.parametrize(("status", "kind"), [(403, BadInput), (500, ServiceUnavailable)])
def test_a_hub_that_refuses_is_told_with_its_status(
    hub: StubHub, models: Path, status: int, kind: type[SynthgenError]
) -> None:
    hub.status = status
    error = sentence(hub, models)
    assert isinstance(error, kind)
    assert f"HTTP {status}" in str(error)


def test_no_network_is_told(hub: StubHub, models: Path) -> None:
    error = sentence(hub, models, endpoint="http://127.0.0.1:1")
    assert isinstance(error, ServiceUnavailable)
    assert "cannot be reached" in str(error)


def test_offline_mode_is_told(hub: StubHub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(sentence(hub, models))


def test_a_pattern_that_matches_nothing_is_told(hub: StubHub, models: Path) -> None:
    assert "no file that matches *.gguf" in str(sentence(hub, models, include=["*.gguf"]))


def test_a_folder_that_cannot_be_written_is_told(hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "cannot be stored" in str(sentence(hub, tmp_path / "file"))


def test_a_file_that_would_lie_outside_is_refused(hub: StubHub, models: Path) -> None:
    hub.add(REPO, {"../../evil.py": b"x"})
    assert "outside" in str(sentence(hub, models))
