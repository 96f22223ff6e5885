# SPDX-License-Identifier: Apache-2.0
"""``kumo host``: hosts that volumes are published to."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output
from kumo_client.cli.output import Column

COLUMNS = (
    Column("UUID", lambda item: item.uuid),
    Column("Name", lambda item: item.name),
    Column("Host NQN", lambda item: item.nqn),
    Column("State", lambda item: item.state),
    Column("Client", lambda item: item.client_type),
    Column("Version", lambda item: item.version),
    Column("Volumes", lambda item: item.volumes, right=True),
    Column("Last probe", lambda item: output.when(item.last_probe_time)),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "host", "Hosts")
    command.looking(verbs, "list", "List hosts", _list)
    _host(command.looking(verbs, "show", "Show a host", _show))
    _host(command.dangerous(command.verb(verbs, "delete", "Forget a host", _delete)))


def _host(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="UUID_OR_NAME", completer=complete.hosts)


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Listing(provisioner.hosts(), COLUMNS)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(find.host(provisioner, args.id))


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    host = find.host(provisioner, args.id)
    command.confirm(args, f"Forget host {host.name or host.uuid}")
    provisioner.delete_host(host.uuid)
