# SPDX-License-Identifier: Apache-2.0
"""``kumo volume``: volumes and where their replicas are."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.cli.output import Column
from kumo_client.schemas.volume import Volume

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Alias", lambda item: item.alias),
    Column("Size GiB", lambda item: item.capacity, right=True),
    Column("Replicas", lambda item: item.num_replicas, right=True),
    Column("Replica states", lambda item: ", ".join(_states(item))),
    Column("Nodes", lambda item: ", ".join(_nodes(item))),
    Column("Hosts", lambda item: len(item.published_hosts), right=True),
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
    command.verb(verbs, "list", "List volumes", _list)
    show = command.verb(verbs, "show", "Show a volume", _show)
    show.add_argument("id", metavar="UUID_OR_ALIAS")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    output.show_list(provisioner.volumes(), COLUMNS, args.format)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> None:
    find = provisioner.volume if command.is_uuid(args.id) else provisioner.volume_by_alias
    output.show_one(find(args.id), args.format)
