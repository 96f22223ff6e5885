# SPDX-License-Identifier: Apache-2.0
"""``kumo volume``: going back, taking over, giving up and moving."""

from __future__ import annotations

import argparse
import uuid
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import classes, command, complete, find, output, progress
from kumo_client.cli.output import Column
from kumo_client.schemas.task import FAILED, FINISHED, Task
from kumo_client.schemas.volume import AdoptVolume, MigrateVolume

ADOPTABLE_COLUMNS = (
    Column("Node", lambda item: item.backend_name or item.backend_id),
    Column("Pool", lambda item: item.pool),
    Column("Name", lambda item: item.name),
    Column("Size GiB", lambda item: output.gib(item.bytes), right=True),
    Column("Why not", lambda item: item.reason),
)


def register(verbs: Any) -> None:
    """Add the verbs."""
    revert = command.verb(verbs, "revert", "Make a volume what its snapshot is", _revert)
    _volume(command.dangerous(revert))
    command.argument(
        revert, "snapshot", metavar="SNAPSHOT_UUID_OR_ALIAS", completer=complete.snapshots
    )
    adoptable = command.looking(
        verbs, "adoptable", "List logical volumes that could become volumes", _adoptable
    )
    _node(adoptable, nargs="?")
    adopt = command.verb(verbs, "adopt", "Make a volume of a logical volume of a node", _adopt)
    _node(adopt)
    adopt.add_argument("pool")
    adopt.add_argument("name", help="of the logical volume")
    adopt.add_argument("alias", help="of the new volume")
    adopt.add_argument("--uuid", help="otherwise one is made up")
    classes.options(adopt)
    unmanage = command.verb(
        verbs, "unmanage", "Forget a volume and leave its data where it is", _unmanage
    )
    _volume(command.dangerous(unmanage))
    _register_migrate(verbs)


def _register_migrate(verbs: Any) -> None:
    migrate = command.verb(verbs, "migrate", "Move a replica to another storage node", _migrate)
    _volume(migrate)
    migrate.add_argument(
        "--replica",
        metavar="UUID_OR_NODE",
        help="which one, or the node that it is on; needed when there are several",
    )
    command.argument(
        migrate,
        "--to",
        completer=complete.backends,
        metavar="PERSISTENT_ID_OR_NAME",
        help="the new node; otherwise placement chooses",
    )
    progress.options(migrate)


def _volume(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="UUID_OR_ALIAS", completer=complete.volumes)


def _node(parser: argparse.ArgumentParser, **options: Any) -> None:
    command.argument(
        parser,
        "backend",
        metavar="PERSISTENT_ID_OR_NAME",
        completer=complete.backends,
        **options,
    )


def _revert(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.id)
    snapshot = find.snapshot(provisioner, args.snapshot)
    made = output.when(snapshot.timestamp)
    question = f"Throw away what was written to volume {volume.alias} since snapshot"
    command.confirm(args, f"{question} {snapshot.alias} ({made})")
    provisioner.revert_volume(volume.uuid, snapshot.snapshot_id)
    output.show_one(provisioner.volume(volume.uuid), args.format)


def _adoptable(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    backend = find.backend(provisioner, args.backend).persistent_id if args.backend else None
    return output.Listing(provisioner.adoptable_volumes(backend), ADOPTABLE_COLUMNS)


def _adopt(provisioner: Provisioner, args: argparse.Namespace) -> None:
    adopt = AdoptVolume(
        alias=args.alias,
        backend_id=find.backend(provisioner, args.backend).persistent_id,
        pool=args.pool,
        name=args.name,
        uuid=args.uuid or str(uuid.uuid4()),
        storage_class=classes.storage_class(args),
    )
    output.show_one(provisioner.adopt_volume(adopt), args.format)


def _unmanage(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.id)
    command.confirm(args, f"Forget volume {volume.alias} and leave its data on the nodes")
    provisioner.unmanage_volume(volume.uuid)


def _migrate(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.id)
    replica = find.replica(volume, args.replica).uuid if args.replica else None
    if replica is None and len(volume.location) > 1:
        raise command.UsageError(
            f"volume {volume.alias} has {len(volume.location)} replicas; say --replica which one"
        )
    to = find.backend(provisioner, args.to).persistent_id if args.to else ""
    migrate = MigrateVolume(vol_id=volume.uuid, rep_id=replica, destination_backend_id=to)
    answer = provisioner.migrate_volume(migrate)
    progress.begun(provisioner, _task_of(provisioner, answer.task_id, volume.uuid), args)


def _task_of(provisioner: Provisioner, task_id: str, volume: str) -> Task:
    """The task of an answer; KumoScale does not say its id."""
    if task_id:
        return provisioner.task(task_id)
    for task in provisioner.tasks():
        tags = {tag.value for tag in task.task_configuration} | {task.volume_id}
        if volume in tags and task.state not in (FINISHED, FAILED):
            return task
    raise errors.ProtocolError("the move was begun, but there is no task for it", volume=volume)
