"""``synthgen doctor``: tries everything that synthgen stands on and says what to do where something is wrong."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from cli import quantities as q
from cli.connection import json_option, unread
from cli.console import put, put_json, styled
from cli.exit_codes import TROUBLE
from synthgen.engines.base import EngineSpec
from synthgen.errors import BadInput, SynthgenError
from synthgen.settings import Settings, load_settings, unread_variables
from synthgen.storage_mark import advice, marked_for

_LITTLE_SPACE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """``status`` is ok, note (works, worth knowing) or problem (needed and broken)."""

    check: str
    status: str
    message: str


@click.command()
@json_option
def command(*, as_json: bool) -> int:
    """Check every dependency and say what to do.

    Exits with 1 when something needed is broken.
    """
    findings = []
    for finding in _findings():
        findings.append(finding)
        if not as_json:
            colour = {"ok": "green", "note": "yellow", "problem": "red"}[finding.status]
            put(f"{styled(f'{finding.status:<8}', fg=colour)} {finding.check:<9} {finding.message}")
    if as_json:
        put_json([asdict(finding) for finding in findings])
    return TROUBLE if any(finding.status == "problem" for finding in findings) else 0


def _findings() -> Iterator[Finding]:
    yield Finding("python", "ok", f"Python {platform.python_version()} at {sys.executable}")
    try:
        settings = load_settings()
    except BadInput as error:
        yield Finding("settings", "problem", str(error))
        return
    yield from _settings(settings)
    yield _tried("database", lambda: _database(settings))
    yield _tried("storage", lambda: _storage(settings))
    yield from _mark(settings)
    yield _broker(settings)
    yield _redis(settings)
    yield _engine(settings)
    yield _space(settings)
    for name, use in (("uvloop", "a third more requests per core"), ("vllm", "running models on this machine's GPU")):
        found = find_spec(name) is not None
        yield Finding("packages", "ok" if found else "note", f"{name} is {'' if found else 'not '}installed: {use}")


def _tried(check: str, act: Callable[[], object], well: str | None = None) -> Finding:
    """Ok with the sentence ``well``, or with what ``act`` returns; a problem with what it raises."""
    try:
        found = act()
        return Finding(check, "ok", well or str(found))
    except SynthgenError as error:
        return Finding(check, "problem", str(error))


def _settings(settings: Settings) -> Iterator[Finding]:
    for variable in unread_variables():
        yield Finding("settings", "note", unread(variable))
    given = {origin for origin in settings.origins.values() if origin != "default"}
    kind = "embedded: nothing outside this machine is used" if settings.embedded else "from " + ", ".join(sorted(given))
    yield Finding("settings", "ok", kind)


def _database(settings: Settings) -> str:
    from storage import schema
    from tasks.wiring import SHORT_PATIENCE, open_database

    with open_database(settings, patience=SHORT_PATIENCE) as database:
        found = schema.status(database) if settings.database_url else schema.upgrade(database)
        if settings.database_url and not found.is_current:
            raise BadInput(f"The schema is {found.present or 'empty'}, not {found.head}: run 'synthgen db upgrade'.")
    kind = "PostgreSQL" if settings.database_url else f"embedded PostgreSQL in {settings.home}"
    return f"{kind} answers, schema {found.head}"


def _storage(settings: Settings) -> str:
    """Write, read and delete a small object."""
    from storage.objects import open_objects

    url, region = settings.s3_endpoint_url, settings.s3_region
    objects = open_objects(settings.objects_url, endpoint_url=url, region=region)
    key, data = f"doctor/{secrets.token_hex(8)}", b"synthgen doctor"
    objects.put(key, data)
    try:
        if objects.get(key) != data:
            raise BadInput(f"{settings.objects_url} gives back other bytes than were written.")
    finally:
        objects.delete([key])
    return f"{settings.objects_url} can be written, read and deleted in"


def _mark(settings: Settings) -> Iterator[Finding]:
    """Told only where the storage is another database's; what does not answer is told already."""
    from tasks.wiring import connect

    with suppress(SynthgenError), connect(settings) as services:
        identity = services.store.identity()
        if marked_for(services.objects) not in (None, identity):
            yield Finding("storage", "note", advice(identity, services.objects))


def _broker(settings: Settings) -> Finding:
    url = settings.broker_url
    if url is None:
        return Finding("broker", "ok", "none set: messages between processes of this machine are files in home")
    from tasks.reach import check_broker

    return _tried("broker", lambda: check_broker(url), "the broker answers")


def _redis(settings: Settings) -> Finding:
    url = settings.redis_url
    if url is None:
        return Finding("redis", "ok", "none set, none needed")
    from tasks.reach import check_redis

    return _tried("redis", lambda: check_redis(url), "Redis answers")


def _engine(settings: Settings) -> Finding:
    from tasks.wiring import engine_spec

    if settings.engine is None and settings.base_url is None:
        return Finding("engine", "note", "none set: give run and worker --base-url, or --engine")
    return _tried("engine", lambda: _usable(engine_spec(settings)))


def _usable(spec: EngineSpec) -> str:
    """A server of our own is not started: that takes minutes, and the GPU memory of a worker that runs."""
    if spec.loads_model:
        _startable(spec)
        return f"{spec.kind} has what it is started with; a worker starts it"
    asyncio.run(_health(spec))
    return f"{spec.kind} is ready to answer"


def _startable(spec: EngineSpec) -> None:
    """Raises BadInput when the program, vLLM or the folder of the model is missing."""
    from synthgen.engines.registry import make_engine

    make_engine(spec)
    program = spec.command[0] if spec.kind == "server" else spec.python or sys.executable
    if shutil.which(program) is None:
        raise BadInput(f"The {spec.kind} engine would run {program}, which is not there or cannot be run.")
    if spec.kind == "vllm" and spec.python is None and find_spec("vllm") is None:
        raise BadInput("vLLM is not installed here: set SYNTHGEN_VLLM_PYTHON to an interpreter that has it.")
    if spec.kind == "vllm" and spec.model and spec.model.startswith(("/", ".")) and not Path(spec.model).is_dir():
        raise BadInput(f"There is no folder {spec.model} to load the model from.")


async def _health(spec: EngineSpec) -> None:
    from synthgen.engines.registry import make_engine

    engine = make_engine(spec)
    await engine.start()
    try:
        await engine.health()
    finally:
        await engine.close()


def _space(settings: Settings) -> Finding:
    above = (settings.home, *settings.home.resolve().parents)
    folder = next(path for path in above if os.access(path, os.F_OK))  # exists() raises where it may not look
    free = shutil.disk_usage(folder).free
    message = f"{q.size(free)} free in {settings.home}"
    if free < _LITTLE_SPACE:
        return Finding("disk", "problem", f"{message}: make room, or set SYNTHGEN_HOME to a larger disk.")
    return Finding("disk", "ok", message)
