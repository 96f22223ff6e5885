# SPDX-License-Identifier: Apache-2.0
"""``kumo token``: bearer tokens."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, output
from kumo_client.schemas.token import HOUR, TokenCreate

ROLES = ("admin", "storage", "monitor", "node")


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "token", "Bearer tokens")
    create = command.verb(verbs, "create", "Make a token and print it, this once", _create)
    create.add_argument("--name", help="of the user; otherwise your own")
    create.add_argument("--role", choices=ROLES, help="otherwise your own")
    command.argument(
        create,
        "--of-tenant",
        metavar="TENANT_ID",
        completer=complete.tenants,
        help="otherwise your own",
    )
    create.add_argument("--hours", type=int, default=1, help="its life, at most 720; 1")
    revoke = command.verb(verbs, "revoke", "End the life of a token", _revoke)
    revoke.add_argument("id", metavar="TOKEN_ID")


def _create(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = TokenCreate(
        name=args.name, role=args.role, tenant_id=args.of_tenant, life=args.hours * HOUR
    )
    answer = provisioner.create_token(create)
    if args.format == "json":
        output.show_one(answer, args.format)
        return
    # Alone on its line, so that it can go into a file or a variable.
    print(answer.token)
    expires = output.when(answer.expires * 1000)
    output.note(f"token id {answer.token_id}, expires {expires}")


def _revoke(provisioner: Provisioner, args: argparse.Namespace) -> None:
    provisioner.revoke_token(args.id)
