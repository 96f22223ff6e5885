# SPDX-License-Identifier: Apache-2.0
"""``kumo snapshot``: snapshots."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.cli.output import Column

COLUMNS = (
    Column("Snapshot ID", lambda item: item.snapshot_id),
    Column("Alias", lambda item: item.alias),
    Column("Volume ID", lambda item: item.volume_id),
    Column("Size GiB", lambda item: item.capacity, right=True),
    Column("Made", lambda item: output.when(item.timestamp)),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "snapshot", "Snapshots")
    listing = command.verb(verbs, "list", "List snapshots", _list)
    listing.add_argument("--volume", metavar="UUID", help="only those of this volume")
    show = command.verb(verbs, "show", "Show a snapshot", _show)
    show.add_argument("id", metavar="UUID_OR_ALIAS")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    found = provisioner.snapshots_of(args.volume) if args.volume else provisioner.snapshots()
    output.show_list(found, COLUMNS, args.format)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> None:
    find = provisioner.snapshot if command.is_uuid(args.id) else provisioner.snapshot_by_alias
    output.show_one(find(args.id), args.format)
