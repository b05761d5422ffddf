"""How numbers are written for people, and how durations are read from them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, Final

import click

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BYTES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
# Far beyond any use, and well within what a calendar, JSON and the database's columns hold.
_LONGEST: Final = 100 * 365 * 86_400
_LARGEST: Final = 10**12
_MOST: Final = 10**9

COUNT: Final = click.IntRange(1, _MOST)
"""A number of things."""


class Duration(click.ParamType[int]):
    """``45s``, ``30m``, ``12h``, ``7d``, ``2w`` or their sum, such as ``1h30m``; gives seconds, at most 100 years."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = re.findall(r"(\d{1,20})([smhdw])", value)
        seconds = sum(int(count) * _SECONDS[unit] for count, unit in parts)
        if "".join(map("".join, parts)) != value or not seconds:
            self.fail(f"{value!r} is no duration: write 45s, 30m, 12h, 7d or 1h30m.", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value} is longer than 100 years (36500d).", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """``4000000``, ``500k``, ``4M``, ``1G``; gives bytes, at most 1000G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,20})([kmg]?)b?", value.lower())
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is no size: write 4000000, 500k, 4M or 1G.", param, ctx)
        size = int(match[1]) * _BYTES[match[2]]
        if size > _LARGEST:
            self.fail(f"{value} is more than 1000G.", param, ctx)
        return size


def count(number: float) -> str:
    return f"{number:,.0f}"


def compact(number: int) -> str:
    """In full up to ten million, then ``12.3M`` or ``4.56G``."""
    if number < 10_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.1f}M" if number < 1e9 else f"{number / 1e9:,.2f}G"


def of(number: int, noun: str) -> str:
    """``1 line``, ``2 lines``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(number: float | None) -> str:
    """Per second; a dash while unknown."""
    if number is None:
        return "-"
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def clock(seconds: float | None) -> str:
    """``0:41``, ``12:05``, ``3:02:11``, ``2 d 04:05:06``; a dash while unknown."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def money(dollars: float) -> str:
    """US dollars, with as many digits as a small bill needs."""
    digits = 2 if not dollars or dollars >= 1 else 4 if dollars >= 0.01 else 6
    return f"${dollars:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """Per cent, never rounded up to 100 %."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.1f}%" if percent < 99.95 or part == whole else "99.9%"


def size(number: float) -> str:
    """Bytes, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def age(passed: timedelta) -> str:
    """In its largest unit: ``45 s``, ``12 min``, ``3 h``, ``8 d``."""
    seconds = max(0, round(passed.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def moment(value: datetime | None) -> str:
    """In the reader's own time zone."""
    return "-" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
