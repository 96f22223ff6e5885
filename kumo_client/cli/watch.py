# SPDX-License-Identifier: Apache-2.0
"""Show something again and again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from rich.live import Live
from rich.text import Text

from kumo_client import errors
from kumo_client.cli import output

DEFAULT_SECONDS = 2.0
SHORTEST_SECONDS = 0.1

# Replaced by tests.
sleep = time.sleep


def seconds(text: str) -> float:
    """The value of ``--watch``."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not SHORTEST_SECONDS <= value <= 86400:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds of at least {SHORTEST_SECONDS:g}"
        )
    return value


def show(look: Callable[[], output.View], output_format: str, period: float | None) -> None:
    """Show what ``look`` gives: once, or every ``period`` seconds until Ctrl-C.

    A terminal keeps one place for it. Elsewhere it is printed again; as JSON, one line an object.
    While the provisioner does not answer, the last look stays and the trouble is told.
    """
    view = look()
    if period is None:
        output.show(view, output_format)
        return
    try:
        if output_format == "table" and output.console().is_terminal:
            _live(view, look, period)
        else:
            _lines(view, look, period, output_format)
    except KeyboardInterrupt:
        return


def _live(view: output.View, look: Callable[[], output.View], period: float) -> None:
    console = output.console()
    with Live(output.table(view, fold=True), console=console, auto_refresh=False) as live:
        live.refresh()
        while True:
            sleep(period)
            try:
                view = look()
                live.update(output.table(view, fold=True), refresh=True)
            except errors.KumoError as exc:
                _go_on(exc)
                shown = output.table(view, fold=True)
                shown.caption = Text(output.plain(str(exc)), style="red")
                live.update(shown, refresh=True)


def _lines(
    view: output.View, look: Callable[[], output.View], period: float, output_format: str
) -> None:
    while True:
        if output_format == "json":
            output.print_lines(view)
        else:
            output.show(view, output_format)
        sys.stdout.flush()
        while True:
            sleep(period)
            try:
                view = look()
                break
            except errors.KumoError as exc:
                _go_on(exc)
                output.note(str(exc))


def _go_on(exc: errors.KumoError) -> None:
    """Only silence is waited out; an answer such as "it does not exist" is the last one."""
    if not exc.transient:
        raise exc
