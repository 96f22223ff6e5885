# SPDX-License-Identifier: Apache-2.0
"""``kumo replica``: the replicas of a volume."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output
from kumo_client.cli.output import Column
from kumo_client.schemas.volume import (
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    ReplicaAdd,
)

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Node", lambda item: item.backend.name or item.backend.persistent_id or "?"),
    Column("Node state", lambda item: item.backend.state),
    Column("Pool", lambda item: item.pool),
    Column("State", lambda item: item.replica_state),
    Column("For", lambda item: output.lasting(item.current_state_time), right=True),
    Column("Contents", lambda item: item.freshness),
    Column("Events", lambda item: item.events, right=True),
    Column("Replaces", lambda item: item.replaces),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "replica", "Replicas of a volume")
    _volume(command.looking(verbs, "list", "List the replicas of a volume", _list))
    add = command.verb(verbs, "add", "Give a volume one more replica", _add)
    _volume(add)
    command.argument(
        add,
        "--to",
        completer=complete.backends,
        metavar="PERSISTENT_ID_OR_NAME",
        help="the node for it; otherwise placement chooses",
    )
    remove = command.verb(verbs, "remove", "Ask for the deletion of a replica", _remove)
    _replica(command.dangerous(remove))
    confirm = command.verb(
        verbs, "confirm", "Say that no host uses a replica that is to be deleted", _confirm
    )
    _replica(command.dangerous(confirm))
    state = command.verb(verbs, "set-state", "Report the state of a replica", _set_state)
    _replica(command.dangerous(state))
    state.add_argument("state", choices=(REPLICA_AVAILABLE, REPLICA_SYNCHRONIZING, REPLICA_MISSING))


def _volume(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "volume", metavar="UUID_OR_ALIAS", completer=complete.volumes)


def _replica(parser: argparse.ArgumentParser) -> None:
    _volume(parser)
    command.argument(parser, "replica", metavar="REPLICA_OR_NODE", completer=complete.replicas)


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Listing(find.volume(provisioner, args.volume).location, COLUMNS)


def _add(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.volume).uuid
    to = find.backend(provisioner, args.to).persistent_id if args.to else ""
    output.show_one(provisioner.add_replica(volume, ReplicaAdd(backend_id=to)), args.format)


def _remove(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.volume)
    replica = find.replica(volume, args.replica)
    node = replica.backend.name or replica.backend.persistent_id or "?"
    command.confirm(args, f"Delete the replica of volume {volume.alias} on node {node}")
    provisioner.delete_replica(volume.uuid, replica.uuid)


def _confirm(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.volume)
    replica = find.replica(volume, args.replica)
    command.confirm(args, f"Free the space of replica {replica.uuid} of volume {volume.alias}")
    provisioner.confirm_replica(volume.uuid, replica.uuid)


def _set_state(provisioner: Provisioner, args: argparse.Namespace) -> None:
    volume = find.volume(provisioner, args.volume)
    replica = find.replica(volume, args.replica)
    if args.state == REPLICA_AVAILABLE:
        # Everybody will take it for a source of data.
        command.confirm(args, f"Say that replica {replica.uuid} of {volume.alias} is in sync")
    provisioner.report_replica(volume.uuid, replica.uuid, args.state)
    changed = find.replica(provisioner.volume(volume.uuid), replica.uuid)
    output.show_one(changed, args.format)
