# SPDX-License-Identifier: Apache-2.0
"""Completion in the shell: values are asked of the provisioner.

Whoever presses Tab waits for it and wants no error in the middle of the line, so the time is short
and a failure completes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from requests.adapters import BaseAdapter

from kumo_client import config, errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import find

LOG = logging.getLogger(__name__)

SECONDS = 2.0
# More than anybody reads.
MOST = 200

Ask = Callable[[Provisioner, argparse.Namespace], Iterable[str]]


def _completer(ask: Ask) -> Callable[..., list[str]]:
    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        return values(ask, prefix, parsed_args)

    return complete


def values(
    ask: Ask,
    prefix: str,
    args: argparse.Namespace,
    environ: Mapping[str, str] = os.environ,
    transport: BaseAdapter | None = None,
) -> list[str]:
    """What ``ask`` gives that begins with ``prefix``; nothing when it cannot be asked."""
    try:
        settings = dataclasses.replace(config.load(vars(args), environ), timeout=SECONDS)
        with settings.session(transport=transport) as session:
            found = []
            for value in ask(Provisioner(session, tenant=settings.tenant), args):
                if value.startswith(prefix):
                    found.append(value)
                if len(found) >= MOST:
                    break
            return found
    except errors.KumoError as exc:
        LOG.debug("nothing to complete %r with: %s", prefix, exc)
        return []


def _two(first: str, second: str) -> list[str]:
    return [text for text in (first, second) if text]


def ask_backends(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Names and persistent ids."""
    return [text for it in provisioner.backends() for text in _two(it.name, it.persistent_id)]


def ask_volumes(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Aliases and uuids."""
    for item in provisioner.each_volume():
        yield from _two(item.alias, item.uuid)


def ask_snapshots(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Aliases and uuids."""
    return [text for it in provisioner.snapshots() for text in _two(it.alias, it.snapshot_id)]


def ask_hosts(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Names and uuids."""
    return [text for it in provisioner.hosts() for text in _two(it.name, it.uuid)]


def ask_tenants(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Ids."""
    return [item.tenant_id for item in provisioner.tenants()]


def ask_tasks(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Ids."""
    return [item.task_id for item in provisioner.tasks()]


def ask_garbage(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Uuids."""
    return [item.uuid for item in provisioner.garbage()]


def ask_replicas(provisioner: Provisioner, args: argparse.Namespace) -> Iterable[str]:
    """Uuids of the replicas of the volume that stands before, and their nodes."""
    volume = find.volume(provisioner, args.volume)
    return [text for it in volume.location for text in _two(it.uuid, it.backend.name)]


backends = _completer(ask_backends)
volumes = _completer(ask_volumes)
snapshots = _completer(ask_snapshots)
hosts = _completer(ask_hosts)
tenants = _completer(ask_tenants)
tasks = _completer(ask_tasks)
garbage = _completer(ask_garbage)
replicas = _completer(ask_replicas)
