# SPDX-License-Identifier: Apache-2.0
"""``kumo backend``: storage nodes."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.cli.output import Column
from kumo_client.schemas.backend import DEFAULT_MGMT_PORT, Backend, BackendCreate

COLUMNS = (
    Column("Persistent ID", lambda item: item.persistent_id),
    Column("Name", lambda item: item.name),
    Column("State", lambda item: item.state),
    Column("Management", lambda item: ", ".join(_management(item))),
    Column("Total GiB", lambda item: item.total_capacity, right=True),
    Column("Free GiB", lambda item: item.available_capacity, right=True),
    Column("Rack", lambda item: item.rack),
    Column("Zone", lambda item: item.zone),
    Column("Region", lambda item: item.region),
)


def _management(backend: Backend) -> list[str]:
    return [
        f"[{address}]:{backend.mgmt_port}" if ":" in address else f"{address}:{backend.mgmt_port}"
        for address in backend.mgmt_ips
    ]


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "backend", "Storage nodes")
    command.verb(verbs, "list", "List storage nodes", _list)
    show = command.verb(verbs, "show", "Show a storage node", _show)
    show.add_argument("id", metavar="PERSISTENT_ID_OR_NAME")
    add = command.verb(verbs, "add", "Register a storage node", _add)
    add.add_argument(
        "--mgmt-ip",
        dest="mgmt_ips",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="management address or name of the node; may be repeated",
    )
    add.add_argument("--mgmt-port", type=int, default=DEFAULT_MGMT_PORT, metavar="PORT")
    for place in ("rack", "zone", "region"):
        add.add_argument(f"--{place}", default="")
    delete = command.verb(verbs, "delete", "Forget a storage node without replicas", _delete)
    delete.add_argument("id", metavar="PERSISTENT_ID_OR_NAME")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    output.show_list(provisioner.backends(), COLUMNS, args.format)


def _find(provisioner: Provisioner, text: str) -> Backend:
    backends = provisioner.backends()
    exact = [item for item in backends if item.persistent_id == text]
    found = exact or [item for item in backends if item.name == text]
    backend: Backend = command.single(found, f"backend {text}")
    return backend


def _show(provisioner: Provisioner, args: argparse.Namespace) -> None:
    output.show_one(provisioner.backend(_find(provisioner, args.id).persistent_id), args.format)


def _add(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = BackendCreate(
        mgmt_ips=args.mgmt_ips,
        mgmt_port=args.mgmt_port,
        rack=args.rack,
        zone=args.zone,
        region=args.region,
    )
    output.show_one(provisioner.add_backend(create), args.format)


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    provisioner.delete_backend(_find(provisioner, args.id).persistent_id)
