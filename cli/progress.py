"""The live view of a running batch, for ``run``, ``watch`` and ``submit --watch``.

On a terminal it is redrawn in place at most twice a second; to a pipe it is a plain line every few seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli import quantities as q
from cli.console import console, say
from synthgen.batch import Counts, Progress
from synthgen.ports import ErrorGroup, Services

_POLL: Final = 0.5
_PLAIN_EVERY: Final = 5.0
_ERRORS_EVERY: Final = 5.0
_WINDOW: Final = 15.0
"""Seconds over which speed is measured: several heartbeats, so that it does not jump."""
_ERRORS_SHOWN: Final = 3
_WIDEST: Final = 100


@dataclass(frozen=True, slots=True)
class Speed:
    """Per second, None while unknown; ``left`` in seconds. Tokens are those paid for."""

    requests: float | None = None
    tokens_in: float | None = None
    tokens_out: float | None = None
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """All that is drawn. ``elapsed`` in seconds."""

    progress: Progress
    speed: Speed = field(default_factory=Speed)
    elapsed: float = 0.0
    errors: Sequence[ErrorGroup] = ()
    note: str | None = None


class Speedometer:
    """Speed over the last seconds of readings."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Progress]] = deque()

    def read(self, progress: Progress, now: float) -> Speed:
        """``now`` in seconds, growing."""
        self._seen.append((now, progress))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        seconds = now - then
        done = progress.counts.finished - before.counts.finished
        if seconds <= 0 or done <= 0:
            return Speed()
        rest = progress.batch.total - progress.counts.finished
        return Speed(
            requests=done / seconds,
            tokens_in=(progress.counts.prompt_tokens - before.counts.prompt_tokens) / seconds,
            tokens_out=(progress.counts.completion_tokens - before.counts.completion_tokens) / seconds,
            left=rest * seconds / done,
        )


def follow(
    services: Services,
    batch_id: str,
    *,
    goes_on: Callable[[Progress], bool],
    wait: Callable[[float], object] = time.sleep,
    note: Callable[[], str | None] = lambda: None,
    since: datetime | None = None,
) -> Progress:
    """Draw the batch until ``goes_on`` says no; the furthest reading.

    ``since`` is where elapsed time begins (None: when the batch began), ``note`` a sentence to show beneath.
    """
    meter, errors, errors_at = Speedometer(), list[ErrorGroup](), float("-inf")
    progress = services.store.progress(batch_id)
    with _LiveView() if console.is_terminal else _PlainView() as view:
        while True:
            progress, now = furthest(progress, services.store.progress(batch_id)), time.monotonic()
            if progress.counts.failed and now - errors_at >= _ERRORS_EVERY:
                errors, errors_at = services.store.error_groups(batch_id), now
            elapsed = elapsed_of(progress, since)
            view.show(Reading(progress, meter.read(progress, now), elapsed, errors, note()))
            if not goes_on(progress):
                return progress
            wait(_POLL)


def furthest(before: Progress, now: Progress) -> Progress:
    """A shard that is given back counts as not begun, though its answers are kept: what was once shown stays."""
    return now if now.counts.finished >= before.counts.finished else replace(before, batch=now.batch)


def elapsed_of(progress: Progress, since: datetime | None = None) -> float:
    """Seconds from ``since``, or the batch's start, to its end or now."""
    begin = since or progress.batch.started_at
    end = progress.batch.ended_at or datetime.now(UTC)
    return 0.0 if begin is None else max(0.0, (end - begin).total_seconds())


def plain_line(reading: Reading) -> str:
    """The reading in one line, for pipes and logs."""
    progress, speed = reading.progress, reading.speed
    counts, batch = progress.counts, progress.batch
    parts = [
        f"{q.count(counts.finished)} of {q.count(batch.total)} ({q.share(counts.finished, batch.total)})",
        f"{q.count(counts.failed)} failed, {q.count(counts.cached)} cached, {q.count(batch.rejected)} rejected",
        f"{q.count(progress.running)} running, {q.count(progress.pending)} pending",
        speed_text(speed),
        _money(counts),
        time_text(reading),
    ]
    return f"{batch.state}: " + "; ".join(parts)


def drawing(reading: Reading, width: int) -> RenderableType:
    """The reading as it stands on a terminal of ``width`` columns."""
    progress = reading.progress
    counts, batch = progress.counts, progress.batch
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    now = f"{q.count(progress.running)} running, {q.count(progress.pending)} pending"
    rows = [*facts(progress), ("now", now), ("speed", speed_text(reading.speed)), ("time", time_text(reading))]
    for label, text in rows:
        grid.add_row(label, Text(text))
    for label, text in error_lines(reading.errors):
        grid.add_row(label, Text(text, style="red"))
    parts: list[RenderableType] = [_title(progress), _bar(counts.finished, batch.total, min(width, _WIDEST)), grid]
    if reading.note:
        parts.append(Text(reading.note, style="yellow"))
    return Group(*parts)


def facts(progress: Progress) -> list[tuple[str, str]]:
    """What has been done, as label and text."""
    counts, batch = progress.counts, progress.batch
    rejected = f", {q.count(batch.rejected)} rejected"
    return [
        ("rows", f"{q.count(counts.succeeded)} succeeded, {q.count(counts.failed)} failed{rejected}"),
        ("cache", f"{q.count(counts.cached)} answers from it ({q.share(counts.cached, counts.finished)})"),
        ("tokens", _tokens(counts.prompt_tokens, counts.completion_tokens) + _saved_tokens(progress)),
        ("money", _money(counts, hint=" (give --input-price and --output-price)")),
    ]


def error_lines(groups: Sequence[ErrorGroup]) -> list[tuple[str, str]]:
    """The commonest causes, as label and text."""
    shown = [f"{q.count(group.count)} x {group.code}: {' '.join(group.message.split())}" for group in groups]
    if len(shown) > _ERRORS_SHOWN:
        shown[_ERRORS_SHOWN:] = [f"and {q.of(len(shown) - _ERRORS_SHOWN, 'other cause')}"]
    return [("errors" if number == 0 else "", text) for number, text in enumerate(shown)]


def speed_text(speed: Speed) -> str:
    return (
        f"{q.rate(speed.requests)} requests/s, {q.rate(speed.tokens_in)} tokens/s in, "
        f"{q.rate(speed.tokens_out)} tokens/s out"
    )


def time_text(reading: Reading) -> str:
    left = reading.speed.left
    return f"{q.clock(reading.elapsed)} elapsed, {'-' if left is None else f'about {q.clock(left)}'} left"


class _LiveView:
    """Redrawn in place. What it drew last stays on the screen only if something went wrong."""

    def __init__(self) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, reading: Reading) -> None:
        self._live.update(drawing(reading, console.width), refresh=True)


class _PlainView:
    """A line when something happens, not more often than every few seconds."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()
        self._noted: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def show(self, reading: Reading) -> None:
        if reading.note and reading.note != self._noted:
            self._noted = reading.note
            say(reading.note)
        now = time.monotonic()
        if now - self._said_at >= _PLAIN_EVERY:
            self._said_at = now
            say(plain_line(reading))


def _title(progress: Progress) -> Text:
    batch = progress.batch
    return Text.assemble((batch.name, "bold"), "  ", (batch.id, "dim"), "  ", (str(batch.state), "cyan"))


def _bar(done: int, total: int, width: int) -> Table:
    text = f"{q.share(done, total)}  {q.count(done)} of {q.count(total)}"
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=max(1, total), completed=done, width=max(10, width - len(text) - 3)), text)
    return grid


def _tokens(into: int, out: int) -> str:
    return f"{q.compact(into)} in, {q.compact(out)} out"


def _money(counts: Counts, *, hint: str = "") -> str:
    """What is only known in part is a lower bound; ``hint`` says how to know it next time."""
    cost, saved = counts.known_cost, counts.known_saved
    spent = f"spent unknown{hint}" if cost is None else f"{_at_least(counts.unpriced)}{q.money(cost)} spent"
    return f"{spent}, " + (
        "saved unknown" if saved is None else f"{_at_least(counts.unpriced_cached)}{q.money(saved)} saved"
    )


def _at_least(unknown: int) -> str:
    return "at least " if unknown else ""


def _saved_tokens(progress: Progress) -> str:
    counts = progress.counts
    if not counts.cached:
        return ""
    return f"; saved {_tokens(counts.cached_prompt_tokens, counts.cached_completion_tokens)}"
