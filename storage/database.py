"""One PostgreSQL database: its connections, its transactions, and patience while it is away.

Everything above hands ``run`` a function of a connection. A database that restarts is waited for; what it says that is
no passing trouble becomes a sentence. Which statements are sent is left to the other modules of this package.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import orjson
import psycopg
import sqlalchemy as sa
from sqlalchemy import exc

from synthgen.errors import BadSetting, DatabaseUnavailable
from synthgen.retry import RetryPolicy, backoff

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

_SCHEMES: Final = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
_POLICY: Final = RetryPolicy(base=0.05, cap=2.0)
_SETTLING: Final = 10.0
"""Seconds after an outage until everybody has had the time to come back: some of the policy's pauses."""
_PASSING: Final = frozenset({"25006", "25P03", "40001", "40P01", "53100", "53300", "57P01", "57P02", "57P03", "57P05"})
"""SQLSTATEs worth another try: standby, idled too long, serialisation, deadlock, full disk, too many connections, stop,
start."""
_IDLE: Final = "10s"
"""What a transaction may wait for its client. One that is frozen or cut off would keep its locks, and with them others
from the same rows of the cache, for hours."""
_VICTIM: Final = frozenset({"40001", "40P01"})
"""Those of them that another transaction has caused: the server is well."""
_REFUSED: Final = ("password authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
"""What libpq says, with no SQLSTATE, when waiting cannot help."""
_SCHEMA_IS_OLD: Final = frozenset({"42P01", "42703"})
"""Undefined table, undefined column."""


class Database:
    """A pool of at most ``pool_size`` connections; safe to share between threads, not across a fork.

    Raises BadSetting when ``url`` is not one of PostgreSQL's.
    """

    def __init__(self, url: str, *, pool_size: int = 5, patience_seconds: float = 60.0) -> None:
        self.url = _parse(url)
        self.place = _place(self.url)
        self._patience = patience_seconds
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._back_since = -math.inf
        # No ping before use: it costs a round trip each time, and `run` tries again on a connection that has died.
        self.engine = sa.create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=patience_seconds,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            connect_args={
                "connect_timeout": 10,
                "application_name": "synthgen",
                "keepalives_idle": 15,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 30_000,
            },
        )
        sa.event.listen(self.engine, "connect", _limit_idleness)

    def run(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work`` in one transaction; again from its beginning while the server is away or picked us as a victim.

        ``work`` may thus be committed twice, when only the reply of the first commit was lost: it has to bear that.
        Raises DatabaseUnavailable when patience is over, BadSetting when the database refuses us or has no tables.
        """
        give_up = time.monotonic() + self._patience
        failures = 0
        while True:
            try:
                with self.engine.begin() as connection:
                    result = work(connection, *args, **kwargs)
                if self._away_since is not None:
                    self._note_return()
                return result
            except exc.TimeoutError as error:
                raise DatabaseUnavailable(
                    f"All connections to the database at {self.place} stayed busy for {self._patience:g} s; "
                    "run fewer shards at once."
                ) from error
            except (exc.DBAPIError, psycopg.Error) as error:  # psycopg's own come from `driver_of`
                failures += 1
                pause = backoff(_POLICY, failures)
                self._judge(error, out_of_patience=time.monotonic() + pause > give_up)
            time.sleep(pause)

    def _note_absence(self, said: str) -> None:
        """Once for all threads that wait: whoever reads the log must see why nothing moves."""
        with self._lock:
            if self._away_since is None:
                self._away_since = time.monotonic()
                logger.warning("database away, trying until it is back: %s: %s", self.place, _reason(said))

    def _note_return(self) -> None:
        with self._lock:
            if self._away_since is not None:
                logger.warning("database is back after %.0f s: %s", time.monotonic() - self._away_since, self.place)
                self._away_since, self._back_since = None, time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether there has been no outage just now, from which others may not have come back yet."""
        return self._away_since is None and time.monotonic() - self._back_since > _SETTLING

    def close(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()

    def _judge(self, error: exc.DBAPIError | psycopg.Error, *, out_of_patience: bool) -> None:
        """Return when another try makes sense; raise what the caller should see otherwise."""
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        sqlstate = getattr(cause, "sqlstate", None)
        said = str(cause).strip()
        if sqlstate in _SCHEMA_IS_OLD:
            raise BadSetting(
                f"The database at {self.place} lacks tables or columns that synthgen needs; run: synthgen db upgrade"
            ) from error
        if sqlstate is None and isinstance(cause, psycopg.OperationalError):
            if any(phrase in said for phrase in _REFUSED):
                raise BadSetting(
                    f"The database at {self.place} refuses us ({_reason(said)}); correct the database URL."
                ) from error
        elif sqlstate not in _PASSING and not (sqlstate or "").startswith("08"):
            raise error
        if out_of_patience:
            raise DatabaseUnavailable(
                f"The database at {self.place} does not answer ({_reason(said)}); check that it is running."
            ) from error
        if sqlstate not in _VICTIM:
            self._note_absence(said)


def _limit_idleness(connection: psycopg.Connection[Any], _record: object) -> None:
    """Not by a start-up option: poolers such as PgBouncer refuse those."""
    connection.autocommit = True
    connection.execute(f"set idle_in_transaction_session_timeout = '{_IDLE}'")
    connection.autocommit = False


def driver_of(connection: sa.Connection) -> psycopg.Connection[tuple[Any, ...]]:
    """psycopg's connection in the same transaction, for COPY and binary results."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _parse(url: str) -> sa.URL:
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise BadSetting("The database URL must look like postgresql://USER:PASSWORD@HOST:5432/DATABASE.")
    try:
        return sa.make_url("postgresql+psycopg" + url[len(scheme) :])
    except (exc.ArgumentError, ValueError):  # no `from`: the text of these errors holds the password
        raise BadSetting(
            "The database URL cannot be read; it must look like postgresql://USER:PASSWORD@HOST:5432/DATABASE."
        ) from None


def _place(url: sa.URL) -> str:
    """Host, port and database for messages; never the password."""
    host = url.host or url.query.get("host") or "the local socket"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or ''}"


def _reason(said: str) -> str:
    """The heart of libpq's message: "Connection refused" rather than all attempts and a hint."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("\t")]
    return lines[-1].rpartition("failed: ")[2].strip() if lines else "no reply"
