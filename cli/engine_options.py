"""Options of ``run`` and ``worker``: which engine answers and how hard it is driven. Each overrides a setting."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from cli.connection import settings_in_force
from cli.name_value import NAME_VALUE
from synthgen.settings import read_secret

R = TypeVar("R")

_OPTIONS = (
    click.option("--engine", help="openai (where --base-url is given), litellm, mock, vllm or server."),
    click.option("--base-url", metavar="URL", help="OpenAI-compatible server, for example http://localhost:8000/v1."),
    click.option("--api-key-env", metavar="NAME", help="Variable that holds the key (default: OPENAI_API_KEY)."),
    click.option(
        "--provider", metavar="NAME", help="Name in cache keys instead of the server's host: equal servers share."
    ),
    click.option(
        "--in-flight", type=click.IntRange(1), metavar="N", help="Requests in flight at once (default: by engine)."
    ),
    click.option(
        "--shards", type=click.IntRange(1), metavar="N", help="Shards worked on at once (default: by --in-flight)."
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="For one try of one request (default: 600; none for the server that vllm and server start).",
    ),
    click.option(
        "--start-timeout",
        type=float,
        metavar="SECONDS",
        help="For a vllm or server engine until it serves (default: 1800).",
    ),
    click.option("--gpus", metavar="0,1", help="GPUs that a vllm or server engine sees (default: all)."),
    click.option(
        "--command",
        "server_command",
        metavar="'CMD --port {port}'",
        help="What opens the OpenAI-compatible server of --engine server.",
    ),
    click.option("--vllm-python", metavar="PATH", help="Interpreter whose environment has vLLM (default: this one)."),
    click.option(
        "--measure-ttft",
        is_flag=True,
        default=None,
        help="Measure time to first token and between tokens (openai, vllm, server: streams inside).",
    ),
    click.option("--input-price", type=float, metavar="USD", help="Per million prompt tokens."),
    click.option("--output-price", type=float, metavar="USD", help="Per million completion tokens."),
    click.option(
        "--engine-option",
        "engine_options",
        type=NAME_VALUE,
        multiple=True,
        metavar="NAME=VALUE",
        help="What only this engine knows, for example latency=0.2 for mock. Repeatable.",
    ),
)


_SETTINGS = (
    "engine",
    "base_url",
    "provider",
    "in_flight",
    "shards",
    "input_price",
    "output_price",
    "gpus",
    "start_timeout",
    "vllm_python",
    "measure_ttft",
)
"""Options that are named as the settings that they override."""


def engine_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options; the command receives ``settings``, with ``--model`` among them where it has that option."""

    @wraps(command)
    def with_settings(**given: Any) -> R:
        overrides = {name: given.pop(name) for name in _SETTINGS}
        overrides["request_timeout"] = given.pop("timeout")
        overrides["model"] = given.pop("model", None)
        overrides["command"] = given.pop("server_command")
        variable = given.pop("api_key_env")
        overrides["api_key"] = None if variable is None else read_secret(variable)
        options = dict(given.pop("engine_options"))
        settings = settings_in_force(**overrides)
        if options:
            settings = settings.override({"engine_options": {**settings.engine_options, **options}})
        return command(settings=settings, **given)

    for option in reversed(_OPTIONS):
        with_settings = option(with_settings)
    return with_settings
