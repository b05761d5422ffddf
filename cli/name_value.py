"""The type of repeatable ``NAME=VALUE`` options."""

from __future__ import annotations

from typing import Any

import click


class NameValue(click.ParamType[tuple[str, str]]):
    """Gives the pair; the value may hold further equal signs."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, divider, text = value.partition("=")
        if not name or not divider:
            self.fail(f"{value!r} must be NAME=VALUE.", param, ctx)
        return name, text


NAME_VALUE = NameValue()
