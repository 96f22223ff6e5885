# SPDX-License-Identifier: Apache-2.0
"""What the files of the nouns have in common."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import output

Run = Callable[[Provisioner, argparse.Namespace], None]


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


def is_uuid(text: str) -> bool:
    """Whether a text on the command line is a UUID rather than a name."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def single(found: list[Any], what: str) -> Any:
    """The only element.

    :raises NotExistsError: there is none.
    :raises ConflictError: there are several.
    """
    if not found:
        raise errors.NotExistsError(f"{what} does not exist")
    if len(found) > 1:
        raise errors.ConflictError(f"there are {len(found)} of {what}", way_out="give the uuid")
    return found[0]
