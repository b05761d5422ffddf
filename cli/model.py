"""``synthgen model``: the weights that this host's vLLM workers start from."""

from __future__ import annotations

from pathlib import Path

import click

from cli import quantities as q
from cli.connection import settings_in_force
from cli.console import put, say
from cli.steps import Steps


@click.group()
def command() -> None:
    """Fetch weights once for all workers that share a folder."""


@command.command()
@click.argument("repository", metavar="REPO")
@click.option("--revision", metavar="R", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--to", "folder", metavar="DIR", help="Folder of all models (default: the setting 'models_dir').")
@click.option("--include", metavar="PATTERN", multiple=True, help="Only files like this, such as '*.json'. Repeatable.")
def pull(repository: str, *, revision: str, folder: str | None, include: tuple[str, ...]) -> None:
    """Fetch a model from the hub, such as Qwen/Qwen3-8B; prints the folder of its weights.

    A worker with --engine vllm --model REPO then starts from that folder, without network. What was broken off goes
    on where it stopped. HF_ENDPOINT, HF_TOKEN and the proxy variables are read as by Hugging Face's own tools.
    """
    from storage.model_hub import pull

    models = settings_in_force(models_dir=None if folder is None else Path(folder)).models_folder
    with Steps() as steps:
        model, came = pull(models, repository, revision=revision, include=include, notify=steps)
    told = f"{q.of(len(model.files), 'file')}, {q.size(model.size)}, of which {q.size(came)} came now"
    say(f"{model.repository} at {model.commit}: {told}.")
    put(str(model.folder))
