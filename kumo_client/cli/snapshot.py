# SPDX-License-Identifier: Apache-2.0
"""``kumo snapshot``: snapshots."""

from __future__ import annotations

import argparse
import uuid
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output
from kumo_client.cli.output import Column
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate

COLUMNS = (
    Column("Snapshot ID", lambda item: item.snapshot_id),
    Column("Alias", lambda item: item.alias),
    Column("Volume ID", lambda item: item.volume_id),
    Column("Size GiB", lambda item: item.capacity, right=True),
    Column("Made", lambda item: output.when(item.timestamp)),
    Column("Coherent", lambda item: item.coherent),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "snapshot", "Snapshots")
    listing = command.looking(verbs, "list", "List snapshots", _list)
    command.argument(
        listing,
        "--volume",
        metavar="UUID_OR_ALIAS",
        completer=complete.volumes,
        help="only those of this volume",
    )
    _snapshot(command.looking(verbs, "show", "Show a snapshot", _show))
    create = command.verb(verbs, "create", "Take a snapshot of a volume", _create)
    command.argument(create, "volume", metavar="UUID_OR_ALIAS", completer=complete.volumes)
    create.add_argument("alias", help="of the snapshot")
    create.add_argument("--uuid", help="otherwise one is made up")
    restore = command.verb(verbs, "restore", "Make a new volume from a snapshot", _restore)
    _snapshot(restore)
    restore.add_argument("alias", help="of the new volume")
    restore.add_argument("--size", type=int, metavar="GIB", help="otherwise that of the volume")
    restore.add_argument("--uuid", help="otherwise one is made up")
    restore.add_argument("--read-only", action="store_true", help="refuse writes to it")
    _snapshot(command.dangerous(command.verb(verbs, "delete", "Delete a snapshot", _delete)))


def _snapshot(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="UUID_OR_ALIAS", completer=complete.snapshots)


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    if not args.volume:
        return output.Listing(provisioner.snapshots(), COLUMNS)
    # A snapshot may be there longer than its volume, whose uuid is then all that is known.
    by_uuid = find.is_uuid(args.volume)
    volume = args.volume if by_uuid else find.volume(provisioner, args.volume).uuid
    return output.Listing(provisioner.snapshots_of(volume), COLUMNS)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(find.snapshot(provisioner, args.id))


def _create(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = SnapshotCreate(
        alias=args.alias,
        volume_id=find.volume(provisioner, args.volume).uuid,
        snapshot_id=args.uuid or str(uuid.uuid4()),
    )
    provisioner.create_snapshot(create)
    output.show_one(provisioner.snapshot(create.snapshot_id or ""), args.format)


def _restore(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = SnapshotVolumeCreate(
        alias=args.alias,
        snapshot_id=find.snapshot(provisioner, args.id).snapshot_id,
        volume_id=args.uuid or str(uuid.uuid4()),
        capacity=args.size,
        writable=not args.read_only,
    )
    provisioner.create_snapshot_volume(create)
    output.show_one(provisioner.volume(create.volume_id or ""), args.format)


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    snapshot = find.snapshot(provisioner, args.id)
    command.confirm(args, f"Delete snapshot {snapshot.alias}")
    provisioner.delete_snapshot(snapshot.snapshot_id)
