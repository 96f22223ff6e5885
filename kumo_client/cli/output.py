# SPDX-License-Identifier: Apache-2.0
"""Show objects as a table or as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kumo_client.schemas.common import WireModel

FORMATS = ("table", "json")
GIB = 1 << 30
_NO_LIMIT = 1_000_000
_LEAST_TERMINAL_COLUMNS = 80
# Fields that hold ms since the epoch.
_TIMES = frozenset(
    {
        "lastProbTime",
        "lastProbeTime",
        "lastHeartbeat",
        "timestamp",
        "created",
        "updated",
        "firstSeen",
        "lastSeen",
        "removal",
        "time",
    }
)


class Column(NamedTuple):
    """A column of a list: its heading and what it shows of an object."""

    heading: str
    value: Callable[[Any], Any]
    # Numbers are easier to compare at the right edge.
    right: bool = False


@dataclasses.dataclass
class Listing:
    """Several objects, and the columns that a table shows of them."""

    objects: Sequence[WireModel]
    columns: Sequence[Column]


@dataclasses.dataclass
class Single:
    """One object with all its fields, under the names of the wire."""

    item: WireModel


View = Listing | Single


def show(view: View, output_format: str) -> None:
    """Print what there is to see."""
    if output_format == "json":
        print(json.dumps(_wire(view), indent=2, ensure_ascii=False))
    else:
        _print_table(table(view), fold=isinstance(view, Single))


def show_list(objects: Sequence[WireModel], columns: Sequence[Column], output_format: str) -> None:
    """Print several objects."""
    show(Listing(objects, columns), output_format)


def show_one(item: WireModel, output_format: str) -> None:
    """Print one object."""
    show(Single(item), output_format)


def print_lines(view: View) -> None:
    """Print one line of JSON for each object."""
    wire = _wire(view)
    for item in wire if isinstance(wire, list) else [wire]:
        print(json.dumps(item, ensure_ascii=False))


def table(view: View, *, fold: bool = False) -> Table:
    """What is printed, to be shown elsewhere.

    :param fold: long values of a list may be folded.
    """
    made = Table(box=box.ASCII2, show_edge=True, highlight=False)
    if isinstance(view, Single):
        made.add_column("Field", no_wrap=True)
        made.add_column("Value", overflow="fold")
        for name, value in view.item.wire().items():
            made.add_row(_cell(name), _cell(when(value) if name in _TIMES else value))
        return made
    for column in view.columns:
        made.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=not fold,
            overflow="fold",
        )
    for item in view.objects:
        made.add_row(*(_cell(column.value(item)) for column in view.columns))
    return made


def console(*, stderr: bool = False) -> Console:
    """Where tables and progress go."""
    file = sys.stderr if stderr else sys.stdout
    return Console(file=file, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """One line for people on standard error."""
    print("kumo:", " ".join(plain(text).split()), file=sys.stderr, flush=True)


def when(milliseconds: int) -> str:
    """A time of the wire (ms since the epoch) in UTC; empty for 0, which means never."""
    if not milliseconds:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(milliseconds / 1000, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def gib(count: int) -> str:
    """Bytes as GiB with one decimal."""
    return f"{count / GIB:.1f}"


def lasting(milliseconds: int) -> str:
    """A duration in its two largest units."""
    rest = milliseconds // 1000
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2]) or "0 s"


def plain(value: str) -> str:
    """A text from outside without characters that steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in value)


def _wire(view: View) -> Any:
    if isinstance(view, Single):
        return view.item.wire()
    return [item.wire() for item in view.objects]


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


def _print_table(shown: Table, *, fold: bool = False) -> None:
    """Print at the full width of the table, so that no identifier is cut or broken.

    :param fold: long values may be folded to the width of a terminal, if it has a usable one.
    """
    out = console()
    wide = out.options.update(max_width=_NO_LIMIT)
    needed = Measurement.get(out, wide, shown).maximum
    if fold and out.is_terminal:
        needed = min(needed, max(out.width, _LEAST_TERMINAL_COLUMNS))
    # Both, or rich takes 80 columns where TERM is "dumb", and cuts.
    out.size = ConsoleDimensions(needed, out.height)
    out.print(shown)
