# SPDX-License-Identifier: Apache-2.0
"""``kumo tenant``: tenants and their budgets."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, output
from kumo_client.cli.output import Column
from kumo_client.schemas.tenant import TenantWrite

COLUMNS = (
    Column("Tenant ID", lambda item: item.tenant_id),
    Column("Name", lambda item: item.name),
    Column("GiB used", lambda item: item.consumed_capacity, right=True),
    Column("GiB", lambda item: item.capacity or "", right=True),
    Column("IOPS guaranteed", lambda item: item.consumed_iops, right=True),
    Column("IOPS", lambda item: item.total_iops or "", right=True),
    Column("KB/s guaranteed", lambda item: item.consumed_bw, right=True),
    Column("KB/s", lambda item: item.total_bw or "", right=True),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "tenant", "Tenants and their budgets")
    command.looking(verbs, "list", "List tenants", _list)
    create = command.verb(verbs, "create", "Make a tenant", _create)
    create.add_argument("name")
    create.add_argument("--id", help="otherwise one is made up")
    _budgets(create)
    change = command.verb(verbs, "set", "Change name or budgets of a tenant", _set)
    _tenant(change)
    change.add_argument("--name")
    _budgets(change)
    _tenant(
        command.dangerous(command.verb(verbs, "delete", "Delete a tenant without volumes", _delete))
    )


def _tenant(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="TENANT_ID", completer=complete.tenants)


def _budgets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--capacity", type=int, metavar="GIB", help="every replica counts; 0: no limit"
    )
    parser.add_argument("--iops", type=int, metavar="N", help="guaranteed IOPS; 0: no limit")
    parser.add_argument("--bw", type=int, metavar="KBPS", help="guaranteed KB/s; 0: no limit")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Listing(provisioner.tenants(), COLUMNS)


def _create(provisioner: Provisioner, args: argparse.Namespace) -> None:
    write = TenantWrite(
        tenant_id=args.id,
        name=args.name,
        capacity=args.capacity or 0,
        total_iops=args.iops or 0,
        total_bw=args.bw or 0,
    )
    output.show_one(provisioner.add_tenant(write), args.format)


def _set(provisioner: Provisioner, args: argparse.Namespace) -> None:
    if (args.name, args.capacity, args.iops, args.bw) == (None,) * 4:
        raise command.UsageError("nothing to change was given")
    now = provisioner.find_tenant(args.id)
    write = TenantWrite(
        name=now.name if args.name is None else args.name,
        capacity=now.capacity if args.capacity is None else args.capacity,
        total_iops=now.total_iops if args.iops is None else args.iops,
        total_bw=now.total_bw if args.bw is None else args.bw,
    )
    provisioner.update_tenant(args.id, write)
    output.show_one(provisioner.find_tenant(args.id), args.format)


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    tenant = provisioner.find_tenant(args.id)
    command.confirm(args, f"Delete tenant {tenant.name or tenant.tenant_id}")
    provisioner.delete_tenant(tenant.tenant_id)
