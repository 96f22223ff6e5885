# SPDX-License-Identifier: Apache-2.0
"""Volumes put into the database directly: making 100,000 through the API would take an hour."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import insert, select, update

from bench import fleet
from kumo_client import naming
from kumo_client.schemas.volume import REPLICA_AVAILABLE, StorageClass
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database

AT_ONCE = 2000


def hosts(url: str) -> None:
    """Register the hosts; those that are there stay."""
    database = Database(url)
    with database.write() as session:
        known = set(session.scalars(select(models.Host.uuid)))
        for number in range(fleet.HOSTS):
            if fleet.host_id(number) not in known:
                session.add(
                    models.Host(
                        uuid=fleet.host_id(number), nqn=fleet.host_nqn(number), last_probe=now_ms()
                    )
                )
    database.close()


def volumes(url: str, first: int, last: int, nodes: int) -> None:
    """Insert volumes, replicas and publications, and what the pools are charged with.

    :param url: of a database that no provisioner uses now.
    """
    database = Database(url)
    charged: Counter[tuple[str, str]] = Counter()
    held: Counter[tuple[str, str]] = Counter()
    for some in _chunks(fleet.volumes(first, last, nodes)):
        rows = _Rows(some)
        with database.write() as session:
            session.execute(insert(models.Volume), rows.volumes)
            session.execute(insert(models.Replica), rows.replicas)
            if rows.publications:
                session.execute(insert(models.Publication), rows.publications)
        charged.update(rows.charged)
        held.update(rows.held)
    with database.write() as session:
        for (backend_id, pool), size in charged.items():
            session.execute(
                update(models.Pool)
                .filter_by(backend_id=backend_id, name=pool)
                .values(
                    charged_bytes=models.Pool.charged_bytes + size,
                    replicas=models.Pool.replicas + held[backend_id, pool],
                )
            )
    database.close()


def _chunks(items: Iterable[fleet.Existing]) -> Iterator[list[fleet.Existing]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, AT_ONCE)):
        yield some


class _Rows:
    """Rows of some volumes."""

    def __init__(self, some: list[fleet.Existing]) -> None:
        self.volumes: list[dict[str, Any]] = []
        self.replicas: list[dict[str, Any]] = []
        self.publications: list[dict[str, Any]] = []
        self.charged: Counter[tuple[str, str]] = Counter()
        self.held: Counter[tuple[str, str]] = Counter()
        now = now_ms()
        for one in some:
            self._volume(one, now)
            for position, leg in enumerate(one.legs):
                self._replica(one, position, leg, now)
            if one.host is not None:
                self.publications.append(
                    {
                        "volume_id": one.uuid,
                        "host_id": fleet.host_id(one.host),
                        "status": models.PUBLISHED,
                        "since": now,
                    }
                )

    def _volume(self, one: fleet.Existing, now: int) -> None:
        self.volumes.append(
            {
                "uuid": one.uuid,
                "tenant_id": "0",
                "alias": f"existing-{one.number}",
                "status": models.AVAILABLE,
                "created": now - 1_000_000 + one.number,
                "capacity": fleet.VOLUME_GIB,
                "wanted_capacity": fleet.VOLUME_GIB,
                "num_replicas": len(one.legs),
                "storage_class": StorageClass(num_replicas=len(one.legs)).wire(),
                "array_state": models.ARRAY_OPEN if one.host is not None else models.ARRAY_CLEAN,
            }
        )

    def _replica(self, one: fleet.Existing, position: int, leg: fleet.Leg, now: int) -> None:
        backend_id = fleet.node_id(leg.node)
        self.charged[backend_id, leg.pool] += leg.bytes
        self.held[backend_id, leg.pool] += 1
        self.replicas.append(
            {
                "uuid": leg.uuid,
                "volume_id": one.uuid,
                "backend_id": backend_id,
                "pool": leg.pool,
                "position": position,
                "bytes": leg.bytes,
                "reserved_bytes": leg.bytes,
                "state": REPLICA_AVAILABLE,
                "state_since": now,
            }
        )


def write_inventory(path: pathlib.Path, first: int, last: int, nodes: int) -> None:
    """The same volumes as the simulated nodes take them over."""
    with path.open("w") as stream:
        for one in fleet.volumes(first, last, nodes):
            nqn = "" if one.host is None else fleet.host_nqn(one.host)
            for leg in one.legs:
                values = (
                    leg.node,
                    leg.uuid,
                    one.uuid,
                    leg.bytes,
                    leg.pool,
                    nqn,
                    naming.io_class(len(one.legs)),
                )
                stream.write(json.dumps(values) + "\n")
