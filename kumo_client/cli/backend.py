# SPDX-License-Identifier: Apache-2.0
"""``kumo backend``: storage nodes."""

from __future__ import annotations

import argparse
from typing import Any

from pydantic import Field

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output, progress
from kumo_client.cli.output import Column
from kumo_client.schemas.backend import (
    DEFAULT_MGMT_PORT,
    Backend,
    BackendCreate,
    BackendPool,
    BackendUpdate,
    DeclaredPool,
)
from kumo_client.schemas.task import DRAIN, FAILED, FINISHED, Task, TaskAnswer

COLUMNS = (
    Column("Persistent ID", lambda item: item.persistent_id),
    Column("Name", lambda item: item.name),
    Column("State", lambda item: _state(item)),
    Column("Management", lambda item: ", ".join(_management(item))),
    Column("Total GiB", lambda item: item.total_capacity, right=True),
    Column("Free GiB", lambda item: item.available_capacity, right=True),
    Column("Replicas", lambda item: item.replicas, right=True),
    Column("Rack", lambda item: item.rack),
    Column("Zone", lambda item: item.zone),
    Column("Region", lambda item: item.region),
    Column("Problems", lambda item: len(item.problems) or "", right=True),
)


class PoolOfBackend(BackendPool):
    """A pool with the node that it is on."""

    backend_id: str = Field("", alias="backendId")
    backend_name: str = Field("", alias="backendName")


POOL_COLUMNS = (
    Column("Node", lambda item: item.backend_name or item.backend_id),
    Column("Pool", lambda item: item.name),
    Column("State", lambda item: item.state),
    Column("Total GiB", lambda item: output.gib(item.total_bytes), right=True),
    Column("Used GiB", lambda item: output.gib(item.used_bytes), right=True),
    Column("Charged GiB", lambda item: output.gib(item.charged_bytes), right=True),
    Column("IOPS now", lambda item: item.iops, right=True),
    Column("IOPS sold/max", lambda item: f"{item.sold_iops}/{item.max_iops}", right=True),
    Column("KB/s now", lambda item: item.bw, right=True),
    Column("KB/s sold/max", lambda item: f"{item.sold_bw}/{item.max_bw}", right=True),
    Column("Disks", lambda item: ", ".join(_disk(ssd) for ssd in item.ssds)),
)


def _state(backend: Backend) -> str:
    return f"{backend.state}, cordoned" if backend.cordoned else backend.state


def _management(backend: Backend) -> list[str]:
    return [
        f"[{address}]:{backend.mgmt_port}" if ":" in address else f"{address}:{backend.mgmt_port}"
        for address in backend.mgmt_ips
    ]


def _disk(ssd: Any) -> str:
    worn = "" if ssd.wear_percent is None else f" {ssd.wear_percent} % worn"
    return ssd.path + worn + ("" if ssd.state == "ok" else f" {ssd.state}")


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "backend", "Storage nodes")
    command.looking(verbs, "list", "List storage nodes", _list)
    _node(command.looking(verbs, "show", "Show a storage node", _show))
    pools = command.looking(verbs, "pools", "List the pools of one or all storage nodes", _pools)
    _node(pools, nargs="?")
    _register_add(verbs)
    _register_set(verbs)
    _node(command.verb(verbs, "cordon", "Place no new replicas on a storage node", _cordon))
    _node(command.verb(verbs, "uncordon", "Place replicas on a storage node again", _uncordon))
    drain = command.verb(verbs, "drain", "Move all replicas away from a storage node", _drain)
    _node(command.dangerous(drain))
    drain.add_argument("--stop", action="store_true", help="begin no further moves")
    progress.options(drain)
    maintenance = command.verb(
        verbs, "maintenance", "Say whether a storage node is to be away for a while", _maintenance
    )
    _node(maintenance)
    maintenance.add_argument("switch", choices=("on", "off"))
    _node(command.verb(verbs, "delete", "Forget a storage node without replicas", _delete))


def _node(parser: argparse.ArgumentParser, **options: Any) -> None:
    command.argument(
        parser,
        "id",
        metavar="PERSISTENT_ID_OR_NAME",
        completer=complete.backends,
        **options,
    )


def _register_add(verbs: Any) -> None:
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


def _register_set(verbs: Any) -> None:
    change = command.verb(verbs, "set", "Change place or limits of a storage node", _set)
    _node(change)
    for place in ("rack", "zone", "region"):
        change.add_argument(f"--{place}")
    change.add_argument(
        "--max-iops", type=int, metavar="N", help="guaranteed IOPS of the whole node; 0: no limit"
    )
    change.add_argument("--max-bw", type=int, metavar="KBPS", help="the same for bandwidth in KB/s")
    change.add_argument(
        "--pool",
        dest="pools",
        action="append",
        nargs=3,
        default=[],
        metavar=("NAME", "IOPS", "KBPS"),
        help="what a pool delivers; 0 goes back to what was measured; may be repeated",
    )


def _list(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Listing(provisioner.backends(), COLUMNS)


def _show(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(provisioner.backend(_id(provisioner, args)))


def _pools(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    backends = [find.backend(provisioner, args.id)] if args.id else provisioner.backends()
    pools = [
        PoolOfBackend(
            backend_id=backend.persistent_id, backend_name=backend.name, **pool.model_dump()
        )
        for backend in backends
        for pool in backend.pools
    ]
    return output.Listing(pools, POOL_COLUMNS)


def _add(provisioner: Provisioner, args: argparse.Namespace) -> None:
    create = BackendCreate(
        mgmt_ips=args.mgmt_ips,
        mgmt_port=args.mgmt_port,
        rack=args.rack,
        zone=args.zone,
        region=args.region,
    )
    output.show_one(provisioner.add_backend(create), args.format)


def _set(provisioner: Provisioner, args: argparse.Namespace) -> None:
    update = BackendUpdate(
        rack=args.rack,
        zone=args.zone,
        region=args.region,
        max_iops=args.max_iops,
        max_bw=args.max_bw,
        pools=[DeclaredPool(name=name, max_iops=iops, max_bw=bw) for name, iops, bw in args.pools],
    )
    if update == BackendUpdate():
        raise command.UsageError("nothing to change was given")
    _update(provisioner, args, update)


def _cordon(provisioner: Provisioner, args: argparse.Namespace) -> None:
    _update(provisioner, args, BackendUpdate(cordoned=True))


def _uncordon(provisioner: Provisioner, args: argparse.Namespace) -> None:
    _update(provisioner, args, BackendUpdate(cordoned=False))


def _maintenance(provisioner: Provisioner, args: argparse.Namespace) -> None:
    _update(provisioner, args, BackendUpdate(maintenance=args.switch == "on"))


def _update(provisioner: Provisioner, args: argparse.Namespace, update: BackendUpdate) -> None:
    persistent_id = _id(provisioner, args)
    provisioner.update_backend(persistent_id, update)
    output.show_one(provisioner.backend(persistent_id), args.format)


def _drain(provisioner: Provisioner, args: argparse.Namespace) -> None:
    backend = find.backend(provisioner, args.id)
    if args.stop:
        provisioner.stop_drain(backend.persistent_id)
        output.show_one(provisioner.backend(backend.persistent_id), args.format)
        return
    held = f"its {backend.replicas} replicas" if backend.replicas else "all replicas"
    command.confirm(args, f"Move {held} away from storage node {backend.name or args.id}")
    task = _task_of(provisioner, provisioner.drain_backend(backend.persistent_id), backend)
    progress.begun(provisioner, task, args)


def _task_of(provisioner: Provisioner, answer: TaskAnswer, backend: Backend) -> Task:
    if answer.task_id:
        return provisioner.task(answer.task_id)
    for task in provisioner.tasks():
        ended = task.state in (FINISHED, FAILED)
        if task.type == DRAIN and task.backend_id == backend.persistent_id and not ended:
            return task
    raise errors.ProtocolError("the drain was begun, but there is no task for it")


def _delete(provisioner: Provisioner, args: argparse.Namespace) -> None:
    provisioner.delete_backend(_id(provisioner, args))


def _id(provisioner: Provisioner, args: argparse.Namespace) -> str:
    return find.backend(provisioner, args.id).persistent_id
