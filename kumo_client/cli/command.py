# SPDX-License-Identifier: Apache-2.0
"""What the files of the nouns have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import output, watch

Run = Callable[[Provisioner, argparse.Namespace], None]
Look = Callable[[Provisioner, argparse.Namespace], output.View]
Completer = Callable[..., list[str]]


class UsageError(Exception):
    """The command cannot be meant so; nothing was sent."""


class DeclinedError(Exception):
    """The user was asked and did not say yes."""


def noun(subparsers: Any, name: str, summary: str) -> Any:
    """Add ``kumo NAME``; what is returned takes its verbs."""
    parser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    return parser.add_subparsers(dest="verb", metavar="VERB", required=True)


def verb(subparsers: Any, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Add a verb that calls ``run``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=f"{summary}."
    )
    # Suppressed, so that a value given before the noun is kept.
    parser.add_argument(
        "-f", "--format", choices=output.FORMATS, default=argparse.SUPPRESS, help="output format"
    )
    parser.set_defaults(run=run)
    return parser


def looking(subparsers: Any, name: str, summary: str, look: Look) -> argparse.ArgumentParser:
    """Add a verb that shows what ``look`` gives, once or with ``--watch`` again and again."""

    def run(provisioner: Provisioner, args: argparse.Namespace) -> None:
        watch.show(lambda: look(provisioner, args), args.format, args.watch)

    parser = verb(subparsers, name, summary, run)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=watch.seconds,
        const=watch.DEFAULT_SECONDS,
        metavar="SECONDS",
        help="show it again and again until Ctrl-C, every 2 seconds unless told otherwise",
    )
    return parser


def dangerous(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the option that answers the question of :func:`confirm`."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    return parser


def argument(
    parser: argparse.ArgumentParser, *names: str, completer: Completer | None = None, **options: Any
) -> None:
    """Add an argument whose values the shell can complete."""
    action = parser.add_argument(*names, **options)
    if completer is not None:
        # The attribute that argcomplete looks for.
        action.completer = completer  # type: ignore[attr-defined]


def confirm(args: argparse.Namespace, question: str) -> None:
    """Ask on the terminal, unless ``--yes`` was given.

    :param question: without the question mark, such as ``Delete volume v1``.
    :raises UsageError: there is no terminal to ask on.
    :raises DeclinedError: the answer is not yes.
    """
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question}: there is no terminal to ask on, so --yes is needed")
    print(f"{output.plain(question)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise DeclinedError("nothing was done")
