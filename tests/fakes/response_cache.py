"""The response cache as two dictionaries."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from synthgen.ports import BatchStore, CacheEntry, CacheStats, Clock
from synthgen.states import UNFINISHED


@dataclass(frozen=True, slots=True)
class _Stored:
    entry: CacheEntry
    created_at: datetime
    expires_at: datetime | None


class FakeResponseCache:
    def __init__(self, clock: Clock, store: BatchStore | None = None) -> None:
        """``store`` tells which batches are unfinished; without one, none is."""
        self._clock = clock
        self._store = store
        self._lock = threading.RLock()
        self._stored: dict[bytes, _Stored] = {}
        self._claims: dict[bytes, tuple[int, datetime]] = {}

    def lookup(self, keys: Sequence[bytes], *, not_before: datetime | None = None) -> dict[bytes, CacheEntry]:
        with self._lock:
            found = {key: self._stored[key] for key in keys if key in self._stored}
        return {
            key: replace(stored.entry, ttl=None)
            for key, stored in found.items()
            if not self._is_expired(stored) and (not_before is None or stored.created_at >= not_before)
        }

    def put(self, entries: Sequence[CacheEntry], *, replace_before: datetime | None = None) -> None:
        now = self._clock.now()
        with self._lock:
            for entry in {entry.key: entry for entry in reversed(entries)}.values():
                present = self._stored.get(entry.key)
                stale = replace_before is not None and present is not None and present.created_at < replace_before
                if present is None or self._is_expired(present) or stale:
                    expires_at = None if entry.ttl is None else now + timedelta(seconds=entry.ttl)
                    self._stored[entry.key] = _Stored(entry, now, expires_at)

    def reserve(self, keys: Sequence[bytes], *, owner: int, lease: float) -> set[bytes]:
        now = self._clock.now()
        with self._lock:
            free = {
                key
                for key in keys
                if key not in self._claims or self._claims[key][0] == owner or self._claims[key][1] <= now
            }
            self._claims |= {key: (owner, now + timedelta(seconds=lease)) for key in free}
        return free

    def unreserve(self, *, owner: int) -> None:
        with self._lock:
            self._claims = {key: claim for key, claim in self._claims.items() if claim[0] != owner}

    def purge(self, *, namespace: str | None = None, model: str | None = None, older_than: float | None = None) -> int:
        now = self._clock.now()
        with self._lock:
            return self._drop(
                key
                for key, stored in self._stored.items()
                if namespace in (None, stored.entry.namespace)
                and model in (None, stored.entry.model)
                and (older_than is None or stored.created_at <= now - timedelta(seconds=older_than))
            )

    def shrink(self, *, max_bytes: int | None) -> int:
        now = self._clock.now()
        with self._lock:
            self._claims = {key: claim for key, claim in self._claims.items() if claim[1] > now}
            removed = self._drop(key for key, stored in self._stored.items() if self._is_expired(stored))
            if max_bytes is None:
                return removed
            so_far, surplus, begun = 0, [], self._first_beginning()
            for key, stored in sorted(self._stored.items(), key=lambda item: item[1].created_at, reverse=True):
                so_far += len(stored.entry.body)
                if so_far > max_bytes and stored.created_at < begun:
                    surplus.append(key)
            return removed + self._drop(surplus)

    def stats(self) -> list[CacheStats]:
        groups: defaultdict[tuple[str, str], list[_Stored]] = defaultdict(list)
        for stored in self._stored.values():
            groups[stored.entry.namespace, stored.entry.model].append(stored)
        stats = [
            CacheStats(
                namespace=namespace,
                model=model,
                entries=len(group),
                size=sum(len(stored.entry.body) for stored in group),
                prompt_tokens=sum(stored.entry.prompt_tokens for stored in group),
                completion_tokens=sum(stored.entry.completion_tokens for stored in group),
                cost=sum(stored.entry.cost or 0.0 for stored in group),
                oldest=min(stored.created_at for stored in group),
                newest=max(stored.created_at for stored in group),
            )
            for (namespace, model), group in groups.items()
        ]
        return sorted(stats, key=lambda each: -each.size)

    def _first_beginning(self) -> datetime:
        unfinished = self._store.list_batches(states=UNFINISHED, limit=1_000_000) if self._store else []
        begun = [progress.batch.started_at for progress in unfinished]
        return min((moment for moment in begun if moment is not None), default=datetime.max.replace(tzinfo=UTC))

    def _is_expired(self, stored: _Stored) -> bool:
        return stored.expires_at is not None and stored.expires_at <= self._clock.now()

    def _drop(self, keys: Iterable[bytes]) -> int:
        dropped = list(keys)
        for key in dropped:
            del self._stored[key]
        return len(dropped)
