# SPDX-License-Identifier: Apache-2.0
"""Show objects as a table or as JSON."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from rich import box
from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kumo_client.schemas.common import WireModel

M = TypeVar("M", bound=WireModel)

FORMATS = ("table", "json")
_NO_LIMIT = 1_000_000
_LEAST_TERMINAL_COLUMNS = 80
# Fields that hold ms since the epoch.
_TIMES = frozenset({"lastProbTime", "lastProbeTime", "timestamp"})


class Column(NamedTuple):
    """A column of a list: its heading and what it shows of an object."""

    heading: str
    value: Callable[[Any], Any]
    # Numbers are easier to compare at the right edge.
    right: bool = False


def show_list(objects: Sequence[M], columns: Sequence[Column], output_format: str) -> None:
    """Print several objects."""
    if output_format == "json":
        _print_json([item.wire() for item in objects])
        return
    table = _table()
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for item in objects:
        table.add_row(*(_cell(column.value(item)) for column in columns))
    _print_table(table)


def show_one(item: WireModel, output_format: str) -> None:
    """Print one object with all its fields, under the names of the wire."""
    if output_format == "json":
        _print_json(item.wire())
        return
    table = _table()
    table.add_column("Field", no_wrap=True)
    table.add_column("Value", overflow="fold")
    for name, value in item.wire().items():
        value = when(value) if name in _TIMES else value
        table.add_row(_cell(name), _cell(value))
    _print_table(table, fold=True)


def when(milliseconds: int) -> str:
    """A time of the wire (ms since the epoch) in UTC; empty for 0, which means never."""
    if not milliseconds:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(milliseconds / 1000, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def plain(value: str) -> str:
    """A text from outside without characters that steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in value)


def _table() -> Table:
    return Table(box=box.ASCII2, show_edge=True, highlight=False)


def _cell(value: Any) -> Text:
    return Text(plain(_words(value)))


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(_words(item) for item in value)
    if isinstance(value, dict):
        # Inside another object only what says something is shown; JSON has the rest.
        return ", ".join(f"{key}={_inline(item)}" for key, item in value.items() if item != "")
    return str(value)


def _inline(value: Any) -> str:
    if isinstance(value, dict) and "persistentID" in value:
        # A node inside a replica: the name says enough, and JSON has the rest.
        return str(value.get("name") or value["persistentID"] or "?")
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return _words(value)


def _print_table(table: Table, *, fold: bool = False) -> None:
    """Print at the full width of the table, so that no identifier is cut or broken.

    :param fold: long values may be folded to the width of a terminal, if it has a usable one.
    """
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    wide = console.options.update(max_width=_NO_LIMIT)
    needed = Measurement.get(console, wide, table).maximum
    if fold and console.is_terminal:
        needed = min(needed, max(console.width, _LEAST_TERMINAL_COLUMNS))
    # Both, or rich takes 80 columns where TERM is "dumb", and cuts.
    console.size = ConsoleDimensions(needed, console.height)
    console.print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
