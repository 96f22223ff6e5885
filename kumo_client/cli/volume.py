# SPDX-License-Identifier: Apache-2.0
"""``kumo volume``: volumes and where their replicas are."""

from __future__ import annotations

import argparse
import uuid
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import classes, command, complete, find, output, volume_more
from kumo_client.cli.output import Column
from kumo_client.schemas.common import SUCCESS
from kumo_client.schemas.host import PublishRequest, UnpublishRequest
from kumo_client.schemas.volume import (
    CloneCreate,
    PlacementAnswer,
    Volume,
    VolumeCreate,
    VolumeModify,
)

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Alias", lambda item: item.alias),
    Column("Size GiB", lambda item: item.capacity, right=True),
    Column("Replicas", lambda item: item.num_replicas, right=True),
    Column("Replica states", lambda item: ", ".join(_states(item))),
    Column("Nodes", lambda item: ", ".join(_nodes(item))),
    Column("Hosts", lambda item: len(item.published_hosts), right=True),
)
PLAN_COLUMNS = (
    Column("Node", lambda item: item.backend_name or item.backend_id),
    Column("Pool", lambda item: item.pool),
    Column("Chosen", lambda item: item.chosen),
    Column("Weight", lambda item: f"{item.weight:.3f}", right=True),
    Column("Refused by", lambda item: item.refused_by),
    Column("Reason", lambda item: item.reason),
)


def _states(volume: Volume) -> list[str]:
    return [location.replica_state for location in volume.location]


def _nodes(volume: Volume) -> list[str]:
    # The node of a Missing replica may be unknown by now.
    return [
        location.backend.name or location.backend.persistent_id or "?"
        for location in volume.location
    ]


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "volume", "Volumes")
    listing = command.looking(verbs, "list", "List volumes", _list)
    command.argument(
        listing,
        "--backend",
        completer=complete.backends,
        metavar="PERSISTENT_ID_OR_NAME",
        help="only those with a replica on this storage node",
    )
    _volume(command.looking(verbs, "show", "Show a volume", _show))
    _register_create(verbs)
    extend = command.verb(verbs, "extend", "Make a volume larger", _extend)
    _volume(extend)
    extend.add_argument("size", type=int, metavar="GIB", help="its new size")
    change = command.verb(verbs, "set", "Change the storage class or alias of a volume", _set)
    _volume(change)
    change.add_argument("--alias")
    classes.live_options(change)
    _volume(command.dangerous(command.verb(verbs, "delete", "Delete a volume", _delete)))
    _register_publish(verbs)
    volume_more.register(verbs)


def _volume(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="UUID_OR_ALIAS", completer=complete.volumes)


def _register_create(verbs: Any) -> None:
    create = command.verb(verbs, "create", "Make a volume", _create)
    create.add_argument("alias")
    create.add_argument("size", type=int, metavar="GIB")
    create.add_argument("--uuid", help="otherwise one is made up")
    create.add_argument("--thin", action="store_true", help="take space when it is written to")
    classes.options(create)
    create.add_argument(
        "--dry-run", action="store_true", help="only say where it would go, and why not elsewhere"
    )
    clone = command.verb(verbs, "clone", "Make a volume with the contents of another", _clone)
    _volume(clone)
    clone.add_argument("alias", help="of the new volume")
    clone.add_argument("--size", type=int, metavar="GIB", help="otherwise that of the source")
    clone.add_argument("--uuid", help="otherwise one is made up")


def _register_publish(verbs: Any) -> None:
    publish = command.verb(verbs, "publish", "Let a host connect to a volume", _publish)
    _volume(publish)
    command.argument(publish, "host", metavar="HOST_UUID_OR_NAME", completer=complete.hosts)
    unpublish = command.verb(verbs, "unpublish", "End the access of a host", _unpublish)
    _volume(command.dangerous(unpublish))
    command.argument(
        unpublish, "host", nargs="?", metavar="HOST_UUID_OR_NAME", completer=complete.hosts
    )
    unpublish.add_argument("--all-hosts", action="store_true", help="of every host; asks before")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    if args.backend is None:
        return output.Listing(provisioner.volumes(), COLUMNS)
    wanted = find.backend(provisioner, args.backend).persistent_id
    volumes = [
        volume
        for volume in provisioner.each_volume()
        if any(location.backend.persistent_id == wanted for location in volume.location)
    ]
    return output.Listing(volumes, COLUMNS)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(find.volume(provisioner, args.id))


def _create(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = VolumeCreate(
        uuid=args.uuid or str(uuid.uuid4()),
        alias=args.alias,
        capacity=args.size,
        provisioning_type="THIN" if args.thin else "THICK",
        storage_class=classes.storage_class(args),
    )
    if args.dry_run:
        _tell_plan(provisioner.plan_volume(create), args)
        return
    provisioner.create_volume(create)
    output.show_one(provisioner.volume(create.uuid or ""), args.format)


def _tell_plan(plan: PlacementAnswer, args: argparse.Namespace) -> None:
    if args.format == "json":
        output.show_one(plan, args.format)
    else:
        output.show_list(plan.nodes, PLAN_COLUMNS, args.format)
    if plan.status != SUCCESS:
        raise errors.NoSpaceError(plan.description or "it cannot be placed")


def _extend(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.id)
    provisioner.extend_volume(volume.uuid, args.size)
    output.show_one(provisioner.volume(volume.uuid), args.format)


def _set(provisioner: Provisioner, args: argparse.Namespace) -> None:
    modify = VolumeModify(alias=args.alias, storage_class=classes.update(args))
    if modify == VolumeModify():
        raise command.UsageError("nothing to change was given")
    volume = find.volume(provisioner, args.id)
    provisioner.modify_volume(volume.uuid, modify)
    output.show_one(provisioner.volume(volume.uuid), args.format)


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.id)
    size = f"{volume.capacity} GiB"
    command.confirm(args, f"Delete volume {volume.alias} ({size}) with its data")
    provisioner.delete_volume(volume.uuid)


def _clone(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = CloneCreate(
        source_volume_id=find.volume(provisioner, args.id).uuid,
        alias=args.alias,
        volume_id=args.uuid or str(uuid.uuid4()),
        capacity=args.size,
    )
    provisioner.clone_volume(create)
    output.show_one(provisioner.volume(create.volume_id or ""), args.format)


def _publish(provisioner: Provisioner, args: argparse.Namespace) -> None:
    request = PublishRequest(
        host_id=find.host(provisioner, args.host).uuid,
        vol_id=find.volume(provisioner, args.id).uuid,
    )
    output.show_one(provisioner.publish(request), args.format)


def _unpublish(provisioner: Provisioner, args: argparse.Namespace) -> None:
    if bool(args.host) == args.all_hosts:
        raise command.UsageError("give either a host or --all-hosts")
    volume = find.volume(provisioner, args.id)
    if args.all_hosts:
        command.confirm(args, f"End the access of every host to volume {volume.alias}")
    host_id = find.host(provisioner, args.host).uuid if args.host else None
    answer = provisioner.unpublish(UnpublishRequest(host_id=host_id, vol_id=volume.uuid))
    output.show_one(answer, args.format)
