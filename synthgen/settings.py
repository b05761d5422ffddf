"""All settings in one frozen value; the only reader of the environment.

A value comes from a ``SYNTHGEN_*`` variable, else from ``synthgen.toml`` (in the current folder, or where
``SYNTHGEN_CONFIG`` says), else from its default; ``origins`` remembers which. Passed in, never imported as a global.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from synthgen.errors import BadSetting

CONFIG_NAME: Final = "synthgen.toml"
COMMAND_LINE: Final = "command line"
"""The origin of what an option says."""
_PREFIX: Final = "SYNTHGEN_"
_HIDDEN: Final = "********"
_SECRET: Final = re.compile("key|token|secret|password", re.IGNORECASE)
_SECRET_IN_QUERY: Final = re.compile(r"([?&][^&=]*(?:key|token|secret|password)[^&=]*=)[^&#]*", re.IGNORECASE)
_BORROWED: Final = {"api_key": "OPENAI_API_KEY", "base_url": "OPENAI_BASE_URL"}
"""Settings that fall back to a variable that the field's other tools read."""

_OWN_SERVER: Final = frozenset({"vllm", "server"})
"""Engines whose server is the worker's own child."""


def _table(value: object) -> object:
    """A variable holds a table as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _words(value: object) -> object:
    """A variable holds a list of words as a shell would take it."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def _has_its_own_server(others: Mapping[str, Any]) -> bool:
    """Requests wait for hours in the queue of a server that we start ourselves, and its supervisor sees it hang."""
    return others.get("engine") in _OWN_SERVER


def _default_deadline(others: Mapping[str, Any]) -> float:
    """A request whose first try timed out must have time for a second one."""
    return math.inf if _has_its_own_server(others) else max(900.0, 2 * others.get("request_timeout", 600.0))


EngineOptions = Annotated[dict[str, str], BeforeValidator(_table)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Settings(BaseModel):
    """What is in force. Times in seconds, sizes in bytes, prices in US dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("synthgen")),
        description="Folder for embedded state: database, files, logs.",
    )
    database_url: str | None = Field(None, description="PostgreSQL; without it a private one runs in home.")
    broker_url: str | None = Field(None, description="RabbitMQ (amqp://…); without it messages are files in home.")
    redis_url: str | None = Field(None, description="Redis, where Celery keeps what Flower and others may ask for.")
    storage_url: str | None = Field(None, description="s3://bucket/prefix or a folder; without it home/objects.")
    s3_endpoint_url: str | None = Field(None, description="Where S3 is, unless it is Amazon's.")
    s3_region: str | None = Field(None, description="Region of the bucket.")
    models_dir: Path | None = Field(None, description="Folder of pulled weights that workers share; else home/models.")
    queue_prefix: str = Field("synthgen", min_length=1, description="Queues are named <prefix>.<pool>.")
    database_patience: float = Field(
        300.0, ge=0, description="What a worker or a run waits for a database that is away."
    )

    pool: str = Field("default", min_length=1, description="Pool of workers; if set, submit sends there too.")
    shards: int | None = Field(None, ge=1, description="Shards that a worker runs at once; default by in_flight.")
    engine: str | None = Field(None, description="Engine of run and worker: openai, litellm, mock, vllm, server.")
    model: str | None = Field(None, description="Model for requests that name none.")
    base_url: str | None = Field(None, description="OpenAI-compatible server (also OPENAI_BASE_URL).")
    api_key: str | None = Field(None, repr=False, description="Its key (also OPENAI_API_KEY).")
    provider: str | None = Field(None, description="Name in cache keys instead of the server's host.")
    in_flight: int | None = Field(None, ge=1, description="Requests in flight per worker; default by engine.")
    request_timeout: float = Field(
        default_factory=lambda others: math.inf if _has_its_own_server(others) else 600.0,
        gt=0,
        description="One try of one request; no limit by default where the worker starts the server.",
    )
    request_deadline: float = Field(
        default_factory=_default_deadline,
        gt=0,
        description="All tries of one request; twice the timeout or more by default.",
    )
    attempts: int = Field(5, ge=1, description="Tries that the provider answers badly before a request has failed.")
    unreachable_after: float = Field(60.0, gt=0, description="Silence of an endpoint that pauses the batch.")
    engine_options: EngineOptions = Field({}, description="What only this engine knows: a table, or a JSON object.")
    command: Words = Field((), description="What opens the server of the server engine; {port} is its port.")
    engine_arguments: Words = Field((), description="Passed on to vLLM untouched.")
    vllm_python: str | None = Field(None, description="Interpreter whose environment has vLLM; default this one.")
    start_timeout: float | None = Field(None, gt=0, description="Until a server of our own must serve; else 1800.")
    gpus: str | None = Field(None, description="GPUs that the worker's engine sees, such as 0,1; default all.")
    idle_exit: float | None = Field(None, gt=0, description="A worker without work for so long ends.")
    idle_sleep: float | None = Field(None, gt=0, description="A vLLM without work for so long sleeps.")
    measure_ttft: bool = Field(
        default=False, description="Time to first token and between tokens, by streaming inside."
    )
    input_price: float | None = Field(None, ge=0, description="Per million prompt tokens, where the engine knows none.")
    output_price: float | None = Field(None, ge=0, description="Per million completion tokens, likewise.")

    lease: float = Field(20.0, gt=1, description="A worker that is silent for this long loses its shards.")
    heartbeat: float = Field(
        default_factory=lambda others: min(2.0, others.get("lease", 20.0) / 4),
        gt=0,
        description="Between signs of life; at most a quarter of the lease.",
    )
    checkpoint: float = Field(0.5, gt=0, le=2, description="Between writes of finished responses to the cache.")
    grace: float = Field(20.0, ge=0, description="What requests in flight get when a worker stops or a batch pauses.")
    resend_after: float = Field(60.0, gt=0, description="A queued shard that nobody claimed is sent again.")
    orphan_age: float = Field(86_400.0, ge=0, description="Objects that no row points at are removed after this.")
    upkeep_every: float = Field(5.0, gt=0, description="Between rounds of upkeep, over all processes.")
    window: int = Field(8, ge=1, description="Shards of a batch waiting in the queue beyond as many as are running.")
    cache_max_bytes: int | None = Field(
        None, ge=0, description="Size of the response cache; what is newer than an unfinished batch's start stays."
    )

    @field_validator("model")
    @classmethod
    def _named(cls, model: str | None) -> str | None:
        if model is not None and not model.strip():
            raise PydanticCustomError("no_name", "name a model, or leave it out")
        return model

    @field_validator("heartbeat")
    @classmethod
    def _in_time_for_the_lease(cls, heartbeat: float, others: ValidationInfo) -> float:
        """A lease that lapses between two signs of life takes shards from the living, and they are paid for twice."""
        lease = others.data.get("lease")
        if lease is not None and heartbeat > lease / 4:
            raise PydanticCustomError(
                "too_rare", "it must be at most a quarter of the lease, which is {lease} s", {"lease": lease}
            )
        return heartbeat

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each value came from: a variable's name, a file, or ``default``."""
        return {name: self._origins.get(name, "default") for name in type(self).model_fields}

    @property
    def embedded(self) -> bool:
        """Nothing set that leads to a server: one host, private database, files."""
        return self.database_url is None and self.broker_url is None and self.storage_url is None

    @property
    def objects_url(self) -> str:
        return self.storage_url or str(self.home / "objects")

    @property
    def models_folder(self) -> Path:
        return (self.models_dir or self.home / "models").expanduser().absolute()

    @classmethod
    def build(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Self:
        """Checked settings that know where each value came from. Raises BadSetting with one sentence."""
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise BadSetting(_sentence(error, origins)) from error
        settings._origins.update(origins)
        return settings

    def override(self, values: Mapping[str, Any], *, origin: str = COMMAND_LINE) -> Self:
        """These settings with those of ``values`` that are not None, checked anew. Raises BadSetting."""
        given = {name: value for name, value in values.items() if value is not None}
        kept = {name: getattr(self, name) for name in self._origins}
        return self.build(kept | given, {**self._origins, **dict.fromkeys(given, origin)})

    def publish(self) -> None:
        """Make this process's environment say the same, for code that reads it anew (``celeryconfig``).

        What is borrowed from another's variable stays borrowed: whose it is decides who may see it.
        """
        for name, origin in self._origins.items():
            if origin in _BORROWED.values():
                continue
            os.environ[_PREFIX + name.upper()] = _as_text(getattr(self, name))

    def shown(self) -> dict[str, str | None]:
        """The values as text, secrets masked."""
        return {name: _masked(name, getattr(self, name)) for name in type(self).model_fields}


def load_settings(environ: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Settings:
    """Read environment and file. Raises BadSetting with one sentence naming the variable or the file."""
    environ = os.environ if environ is None else environ
    origins: dict[str, str] = {}
    values = _from_file(environ, folder or Path.cwd(), origins)
    for name in Settings.model_fields:
        variable = _PREFIX + name.upper()
        if environ.get(variable):
            values[name], origins[name] = environ[variable], variable
        elif name not in values and environ.get(_BORROWED.get(name, "")):
            values[name], origins[name] = environ[_BORROWED[name]], _BORROWED[name]
    return Settings.build(values, origins)


def read_secret(variable: str, environ: Mapping[str, str] | None = None) -> str:
    """What ``--api-key-env`` names. Raises BadSetting when it is not set."""
    value = (os.environ if environ is None else environ).get(variable)
    if not value:
        raise BadSetting(f"--api-key-env names {variable}, which is not set; run: export {variable}=YOUR-KEY")
    return value


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a child process gets to see: all that we see, and ``extra``."""
    return {**os.environ, **extra}


def unread_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """``SYNTHGEN_*`` variables that no setting reads: most likely misspelt."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields} | {_PREFIX + "CONFIG"}
    environ = os.environ if environ is None else environ
    return sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)


def _as_text(value: object) -> str:
    """How a variable says it."""
    match value:
        case None:
            return ""
        case dict():
            return json.dumps(value)
        case tuple():
            return shlex.join(value)
        case _:
            return str(value)


def _from_file(environ: Mapping[str, str], folder: Path, origins: dict[str, str]) -> dict[str, Any]:
    named = environ.get(_PREFIX + "CONFIG")
    path = Path(named) if named else folder / CONFIG_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise BadSetting(f"SYNTHGEN_CONFIG names {path}, which does not exist.") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"{path} cannot be read: {error}.") from error
    origins.update(dict.fromkeys(values, str(path)))
    return values


def _sentence(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "?"
    where = origins.get(name, "default")
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no setting '{name}'; 'synthgen config' lists them all."
    given = _HIDDEN if _SECRET.search(name) else repr(first["input"])
    return f"{where}: setting '{name}' is {given}: {first['msg'].lower()}."


def _masked(name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return json.dumps({option: _masked(option, text) for option, text in value.items()})
    if _SECRET.search(name):
        return _HIDDEN
    if name.endswith("_url"):
        return mask_url(str(value))
    return str(value)


def mask_url(url: str) -> str:
    """The URL with its password hidden, before the host or in the query."""
    try:
        password = urlsplit(url).password
    except ValueError:  # no URL: nobody knows where in it a password is
        return _HIDDEN
    if password:
        url = url.replace(f":{password}@", f":{_HIDDEN}@", 1)
    return _SECRET_IN_QUERY.sub(rf"\1{_HIDDEN}", url)
