# SPDX-License-Identifier: Apache-2.0
"""``kumo restored``: a provisioner whose database is an old copy."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.cli.output import Column
from kumo_client.schemas.restored import DROP, KEEP, REMOVE, UNEXPORT, Restored

COLUMNS = (
    Column("Action", lambda item: item.action),
    Column("Backend", lambda item: item.backend_id),
    Column("Kind", lambda item: item.kind),
    Column("UUID", lambda item: item.uuid),
    Column("Volume", lambda item: item.alias or item.volume_id),
    Column("Host", lambda item: item.host_nqn or item.host_id),
    Column("GiB", lambda item: output.gib(item.bytes) if item.bytes else "", right=True),
    Column("Detail", lambda item: item.detail),
)
ANSWERS = ("fine", "behind")


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "restored", "A database that is an old copy")
    command.verb(
        verbs,
        "show",
        "Show whether it is one, and what acceptance would do on each node; changes nothing",
        _show,
    )
    accept = command.verb(
        verbs,
        "accept",
        "Let the record count again: what it does not know is taken away from nodes from now on",
        _accept,
    )
    accept.add_argument(
        "--exports",
        choices=(KEEP, DROP),
        required=True,
        help="what becomes of exports that only nodes know: keep publishes the volumes to the "
        "hosts that have them, drop takes them away, so that guests there lose their disks",
    )
    command.dangerous(accept)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> None:
    found = provisioner.restored()
    if args.format == "json":
        output.show_one(found, args.format)
        return
    for line in _notes(found):
        output.note(line)
    output.show_list(found.differences, COLUMNS, args.format)


def _notes(found: Restored) -> list[str]:
    lines = ["The database is not in doubt."]
    if found.doubt:
        lines = [f"In doubt since {output.when(found.since)} ({found.doubt}): {found.reason}"]
    for node in found.backends:
        if node.judgement not in ANSWERS:
            lines.append(f"Node {node.backend_id} ({node.name}): {node.judgement} {node.reason}")
    if found.uncertain:
        names = ", ".join(f"{one.alias} ({one.volume_id})" for one in found.uncertain)
        lines.append(
            f"Never written to, as far as the copy knows; after acceptance hosts attach them only "
            f"when they find their array: {names}"
        )
    return lines


def _accept(provisioner: Provisioner, args: argparse.Namespace) -> None:
    if not args.yes:
        todo = [one.action for one in provisioner.restored().differences]
        exports = todo.count(UNEXPORT)
        what = f"keep {exports} exports" if args.exports == KEEP else f"end {exports} exports"
        command.confirm(
            args, f"Let the record count again, remove {todo.count(REMOVE)} objects and {what}"
        )
    output.show_one(provisioner.accept_restored(args.exports), args.format)
