# SPDX-License-Identifier: Apache-2.0
"""``kumo garbage``: objects on nodes that no record knows."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output
from kumo_client.cli.output import Column
from kumo_client.schemas.garbage import Garbage

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Backend", lambda item: item.backend_id),
    Column("Kind", lambda item: item.kind),
    Column("GiB", lambda item: output.gib(item.bytes), right=True),
    Column("First seen", lambda item: output.when(item.first_seen)),
    Column("Last seen", lambda item: output.when(item.last_seen)),
    Column("Removal", lambda item: "kept" if item.kept else output.when(item.removal)),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "garbage", "Objects on nodes that no record knows")
    command.looking(verbs, "list", "List what was found", _list)
    _object(command.verb(verbs, "keep", "Never remove something that was found", _keep))
    remove = command.verb(verbs, "remove", "Remove something that was found, now", _remove)
    _object(command.dangerous(remove))


def _object(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "uuid", completer=complete.garbage)
    command.argument(
        parser,
        "--backend",
        metavar="PERSISTENT_ID",
        completer=complete.backends,
        help="needed when it was found on several nodes",
    )


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Listing(provisioner.garbage(), COLUMNS)


def _find(provisioner: Provisioner, args: argparse.Namespace) -> Garbage:
    found = [
        item
        for item in provisioner.garbage()
        if item.uuid == args.uuid.lower() and args.backend in (None, item.backend_id)
    ]
    if len(found) > 1:
        raise command.UsageError(f"{args.uuid} was found on {len(found)} nodes; give --backend")
    chosen: Garbage = find.single(found, f"garbage {args.uuid}")
    return chosen


def _keep(provisioner: Provisioner, args: argparse.Namespace) -> None:
    found = _find(provisioner, args)
    provisioner.keep_garbage(found.backend_id, found.uuid)


def _remove(provisioner: Provisioner, args: argparse.Namespace) -> None:
    found = _find(provisioner, args)
    size = f"{output.gib(found.bytes)} GiB"
    command.confirm(args, f"Remove {found.kind} {found.uuid} ({size}) from node {found.backend_id}")
    provisioner.remove_garbage(found.backend_id, found.uuid)
