# SPDX-License-Identifier: Apache-2.0
"""``kumo task``: long work."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output, progress
from kumo_client.cli.output import Column

COLUMNS = (
    Column("Task ID", lambda item: item.task_id),
    Column("Type", lambda item: item.type),
    Column("State", lambda item: item.state),
    Column("%", lambda item: int(item.progress), right=True),
    Column("Volume", lambda item: item.volume_id),
    Column("Backend", lambda item: item.backend_id),
    Column("Host", lambda item: item.host_id),
    Column("Part of", lambda item: item.parent),
    Column("Begun", lambda item: output.when(item.created)),
    Column("Description", lambda item: item.status_description),
)


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "task", "Long work of the provisioner and of hosts")
    listing = command.looking(verbs, "list", "List tasks", _list)
    command.argument(
        listing,
        "--host",
        metavar="UUID_OR_NAME",
        completer=complete.hosts,
        help="only those of this host",
    )
    _task(command.looking(verbs, "show", "Show a task", _show))
    wait = command.verb(verbs, "wait", "Wait until a task has ended", _wait)
    _task(wait)
    progress.options(wait, always=True)
    _task(command.dangerous(command.verb(verbs, "delete", "Forget a task that has ended", _delete)))


def _task(parser: argparse.ArgumentParser) -> None:
    command.argument(parser, "id", metavar="TASK_ID", completer=complete.tasks)


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    host = find.host(provisioner, args.host).uuid if args.host else None
    return output.Listing(provisioner.tasks(host), COLUMNS)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(provisioner.task(args.id))


def _wait(provisioner: Provisioner, args: argparse.Namespace) -> None:
    task = progress.wait(provisioner, provisioner.task(args.id), args.at_most)
    output.show_one(task, args.format)


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    task = provisioner.task(args.id)
    command.confirm(args, f"Forget task {task.task_id} ({progress.title(task)}, {task.state})")
    provisioner.delete_task(task.task_id)
