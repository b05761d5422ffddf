"""``synthgen cache``: what is stored of past answers, and removing it."""

from __future__ import annotations

import click

from cli import quantities as q
from cli.connection import json_option, services_in_force, yes_option
from cli.console import agreed, put_json, put_table, say
from cli.quantities import Duration
from synthgen.ports import CacheStats


@click.group()
def command() -> None:
    """See or purge stored responses."""


@command.command()
@json_option
def stats(*, as_json: bool) -> None:
    """Show stored responses by namespace and model, largest first.

    Tokens and money are what it cost to make them.
    """
    with services_in_force() as services:
        found = services.cache.stats()
    if as_json:
        put_json([_fields(entry) for entry in found])
    elif not found:
        say("The cache is empty.")
    else:
        heads = ("NAMESPACE", "MODEL", "RESPONSES", "SIZE", "TOKENS IN", "TOKENS OUT", "COST", "OLDEST", "NEWEST")
        put_table(heads, [_row(entry) for entry in found], right=(2, 3, 4, 5, 6))


@command.command()
@click.option("--model", help="Only responses of this model.")
@click.option("--namespace", help="Only of this namespace.")
@click.option("--older-than", type=Duration(), help="Only older than, for example, 30d.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@yes_option
def purge(*, model: str | None, namespace: str | None, older_than: int | None, everything: bool, yes: bool) -> None:
    """Remove stored responses that match all that is given."""
    narrowed = model is not None or namespace is not None or older_than is not None
    if narrowed is everything:
        raise click.UsageError("Say which: --model, --namespace, --older-than, or --all.")
    if not yes and not agreed("Remove these responses? Asking for them again costs what they cost before."):
        return
    with services_in_force() as services:
        removed = services.cache.purge(namespace=namespace, model=model, older_than=older_than)
    say(f"{q.of(removed, 'response')} removed.")


def _fields(entry: CacheStats) -> dict[str, object]:
    return {
        "namespace": entry.namespace,
        "model": entry.model,
        "responses": entry.entries,
        "bytes": entry.size,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "cost": round(entry.cost, 6),
        "oldest": entry.oldest,
        "newest": entry.newest,
    }


def _row(entry: CacheStats) -> tuple[str, ...]:
    return (
        entry.namespace,
        entry.model or "-",
        q.count(entry.entries),
        q.size(entry.size),
        q.compact(entry.prompt_tokens),
        q.compact(entry.completion_tokens),
        q.money(entry.cost),
        q.moment(entry.oldest),
        q.moment(entry.newest),
    )
