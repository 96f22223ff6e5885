# SPDX-License-Identifier: Apache-2.0
"""``kumo host``: hosts that volumes are published to."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.cli.output import Column

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Name", lambda item: item.name),
    Column("Host NQN", lambda item: item.nqn),
    Column("State", lambda item: item.state),
    Column("Client", lambda item: item.client_type),
    Column("Version", lambda item: item.version),
    Column("Last probe", lambda item: output.when(item.last_probe_time)),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "host", "Hosts")
    command.verb(verbs, "list", "List hosts", _list)
    show = command.verb(verbs, "show", "Show a host", _show)
    show.add_argument("id", metavar="UUID_OR_NAME")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    output.show_list(provisioner.hosts(), COLUMNS, args.format)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> None:
    hosts = provisioner.hosts()
    exact = [host for host in hosts if host.uuid.lower() == args.id.lower()]
    found = exact or [host for host in hosts if host.name == args.id]
    output.show_one(command.single(found, f"host {args.id}"), args.format)
