"""The composition root: settings become services. Embedded and distributed runs differ here and nowhere else.

Celery is loaded only when a message must be sent, so that an embedded run starts fast.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from storage import embedded_postgres, schema
from storage.batch_store import PostgresBatchStore
from storage.database import Database
from storage.objects import open_objects
from storage.response_cache import PostgresResponseCache
from storage.worker_registry import PostgresWorkerRegistry
from synthgen.batch import EngineIdentity
from synthgen.engines.base import EngineSpec
from synthgen.engines.descriptors import allow_connections, allow_ports
from synthgen.engines.lane import Lane
from synthgen.engines.registry import ENGINES, make_engine
from synthgen.errors import BadInput, BadSetting
from synthgen.keeper import Keeper
from synthgen.owner import current_owner
from synthgen.ports import Dispatcher, Limits, Services
from synthgen.retry import RetryPolicy
from synthgen.run_shard import Worker
from synthgen.settings import COMMAND_LINE, Settings
from synthgen.workers import ANY_MODEL

logger = logging.getLogger(__name__)

SHORT_PATIENCE = 10.0
"""What somebody at a terminal waits for a database that is away; work in progress waits as the settings say."""


class SystemClock:
    """Wall clock in UTC and the process's monotonic clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class LazyDispatcher:
    """Loads Celery with the first message."""

    def __init__(self) -> None:
        self._dispatcher: Dispatcher | None = None

    def send(self, pool: str, batch_id: str, numbers: Sequence[int]) -> None:
        if self._dispatcher is None:
            from tasks.dispatch import CeleryDispatcher  # noqa: PLC0415 - see the module's docstring

            self._dispatcher = CeleryDispatcher()
        self._dispatcher.send(pool, batch_id, numbers)


@contextmanager
def connect(
    settings: Settings, *, patience: float = SHORT_PATIENCE, at_first: float | None = None, connections: int = 8
) -> Iterator[Services]:
    """Services as the settings say, with a schema that fits; ``patience`` in seconds, for the first reply ``at_first``.

    Starts and migrates the embedded database. Raises BadSetting or ServiceUnavailable with one sentence.
    """
    if at_first is not None:
        with open_database(settings, patience=at_first) as database:
            schema.status(database)
    with open_database(settings, patience=patience, connections=connections) as database:
        if not schema.status(database).is_current:
            if settings.database_url is not None:
                raise BadSetting("The database's schema is not this version's: run 'synthgen db upgrade'.")
            schema.upgrade(database)
        yield Services(
            store=PostgresBatchStore(database),
            cache=PostgresResponseCache(database),
            objects=open_objects(
                settings.objects_url, endpoint_url=settings.s3_endpoint_url, region=settings.s3_region
            ),
            registry=PostgresWorkerRegistry(database),
            dispatcher=LazyDispatcher(),
            clock=SystemClock(),
            limits=limits_of(settings),
            owner=current_owner(),
        )


@contextmanager
def open_database(settings: Settings, *, patience: float, connections: int = 2) -> Iterator[Database]:
    """The database alone, whatever its schema; the embedded one is started."""
    url = settings.database_url or embedded_postgres.start(settings.home)
    database = Database(url, pool_size=connections, patience_seconds=patience)
    try:
        yield database
    finally:
        database.close()


def make_lane(settings: Settings, spec: EngineSpec) -> Lane:
    """An engine on its loop, not yet started. Raises BadInput."""
    return Lane(make_engine(spec), in_flight=spec.in_flight, policy=policy_of(settings))


@contextmanager
def open_worker(
    services: Services, settings: Settings, spec: EngineSpec, *, lane: Lane | None = None
) -> Iterator[Worker]:
    """An engine on its loop (``lane``, or a new one), started, and a keeper of leases.

    Raises BadInput or FatalError with one sentence.
    """
    lane = lane or make_lane(settings, spec)
    engine = lane.engine
    lane.start()
    _make_room(lane)
    keeper = Keeper(services.store, services.limits)
    keeper.start()
    try:
        model = spec.model if ANY_MODEL in engine.models or spec.model in engine.models else engine.models[0]
        yield Worker(lane, keeper, EngineIdentity(engine.name, engine.provider, engine.revision, model))
    finally:
        keeper.stop()
        lane.close(grace=0)


def _make_room(lane: Lane) -> None:
    """Never more in flight than this process may have connections; most go to one address."""
    ports = allow_ports()
    _at_most(lane, ports, "this system has too few ports for outgoing connections (net.ipv4.ip_local_port_range)")
    _at_most(lane, allow_connections(lane.in_flight), "the limit of open files (ulimit -n) is too low")


def _at_most(lane: Lane, room: int, because: str) -> None:
    if room < lane.in_flight:
        logger.warning("in flight: %d, not %d: %s", room, lane.in_flight, because)
        lane.in_flight = room


def engine_spec(settings: Settings) -> EngineSpec:
    """The engine that the settings describe. Raises BadInput when they name none, or what it has no use for."""
    kind = settings.engine or ("openai" if settings.base_url else None)
    if kind is None:
        raise BadInput(
            "No engine is chosen: give --base-url URL for an OpenAI-compatible server, --engine litellm --model NAME "
            "for any provider, or --engine mock to try synthgen without a model."
        )
    if settings.measure_ttft and kind in ("litellm", "mock"):
        raise BadInput(f"The {kind} engine cannot measure the time to first token; leave out --measure-ttft.")
    for name, (kinds, option) in _ONLY_FOR.items():
        if kind in ENGINES and kind not in kinds and settings.origins[name] == COMMAND_LINE:
            raise BadInput(f"The {kind} engine has no use for {option}; leave it out.")
    sleeping = ("--enable-sleep-mode",) if kind == "vllm" and settings.idle_sleep is not None else ()
    return EngineSpec(
        kind=kind,
        model=settings.model,
        base_url=settings.base_url if kind == "openai" else _own(settings, "base_url"),
        api_key=_own(settings, "api_key") if kind == "litellm" else settings.api_key,
        provider=settings.provider,
        in_flight=settings.in_flight,
        timeout=settings.request_timeout,
        input_price=settings.input_price,
        output_price=settings.output_price,
        options=settings.engine_options,
        command=settings.command,
        arguments=settings.engine_arguments + sleeping,
        python=settings.vllm_python,
        models_dir=settings.models_folder,
        gpus=settings.gpus,
        start_timeout=settings.start_timeout,
        measure_ttft=settings.measure_ttft,
    )


_ONLY_FOR = {
    "command": (("server",), "--command"),
    "engine_arguments": (("vllm",), "what stands after --"),
    "vllm_python": (("vllm",), "--vllm-python"),
    "gpus": (("vllm", "server"), "--gpus"),
    "start_timeout": (("vllm", "server"), "--start-timeout"),
    "engine_options": (("openai", "litellm", "mock"), "--engine-option (what stands after -- goes to vLLM)"),
}
"""Settings that only some engines read. In the environment they may be meant for other workers, as an option not."""


def _own(settings: Settings, name: str) -> str | None:
    """The setting, unless borrowed from OpenAI's variables, which are meant for other tools: LiteLLM must not send
    that key to another provider, and a server of our own has another address."""
    return None if settings.origins[name].startswith("OPENAI_") else getattr(settings, name)


def limits_of(settings: Settings) -> Limits:
    """Where only one of database and storage is shared, what has no row here may have one elsewhere: no orphan then."""
    limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
    if (settings.database_url is None) is (settings.storage_url is None):
        return limits
    return replace(limits, orphan_age=math.inf)


def policy_of(settings: Settings) -> RetryPolicy:
    return RetryPolicy(
        attempts=settings.attempts, deadline=settings.request_deadline, unreachable_after=settings.unreachable_after
    )
