# SPDX-License-Identifier: Apache-2.0
"""Stands in for the provisioner in the healing benchmark: the maker's side, in the agent's process.

What it records of legs follows the provisioner's own rules (:mod:`kumo_provisioner.services.legs`).
It answers at once, its nodes are always "Available" to it, so it helps nobody to find out that one
is not, and a replacement is exported on the first node that has no leg of the volume.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from bench.guest_nodes import Node
from kumo_client import errors
from kumo_client.schemas.volume import REPLICA_AVAILABLE, REPLICA_TERMINATING, REPLICA_UNKNOWN
from kumo_provisioner.db.models import BLANK, FRESH, Replica
from kumo_provisioner.services import legs as law
from os_brick_nvmeof import props
from os_brick_nvmeof.agent import model, vendor
from os_brick_nvmeof.agent.vendor import News, VendorError


@dataclasses.dataclass
class Record:
    """A leg, with what the provisioner's rules look at."""

    uuid: str
    backend_id: str
    volume_id: str
    state: str = REPLICA_AVAILABLE
    freshness: str = FRESH
    events: int = 0
    replaces: str = ""
    state_since: int = 0

    @property
    def in_sync(self) -> bool:
        """As the provisioner has it."""
        return self.state == REPLICA_AVAILABLE and self.freshness == FRESH


class Provisioner(vendor.Vendor):
    """:param nodes: where legs can be. :param size: bytes of a new leg."""

    def __init__(self, nodes: Sequence[Node], size: int) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.size = size
        self._volumes: dict[str, tuple[props.Volume, float]] = {}
        self._records: dict[str, list[Record]] = {}
        self._changed = threading.Condition()
        self._version = 0
        self._pulled = 0

    # -- the benchmark's side ----------------------------------------------------------------------

    def publish(self, volumes: Sequence[props.Volume], down_time: float) -> None:
        """These volumes are the host's now, and no others; wait until the agent knows.

        :param down_time: seconds after which a lost leg is replaced; 0: never.
        :raises TimeoutError: the agent does not ask.
        """
        with self._changed:
            self._volumes = {volume.uuid: (volume, down_time) for volume in volumes}
            self._records = {
                volume.uuid: [Record(leg.uuid, leg.node, volume.uuid) for leg in volume.legs]
                for volume in volumes
            }
            self._version += 1
            self._changed.notify_all()
            wanted = self._version
            if not self._changed.wait_for(lambda: self._pulled >= wanted, 60.0):
                raise TimeoutError("the agent does not ask")

    # -- the agent's side --------------------------------------------------------------------------

    @contextmanager
    def _ruled(self) -> Iterator[None]:
        with self._changed:
            try:
                yield
            except errors.KumoError as error:
                raise VendorError(str(error), code=error.code, definite=True) from error
            except StopIteration as error:
                raise VendorError("there is no such leg", definite=True) from error
            self._version += 1
            self._changed.notify_all()

    def _legs(self, volume: str) -> tuple[list[Record], list[Replica]]:
        """Its records, and the same as the rules call them."""
        records = self._records.get(volume, [])
        return records, cast(list[Replica], records)

    def _one(self, volume: str, leg: str) -> Record:
        return next(one for one in self._records.get(volume, []) if one.uuid == leg)

    def probe(self, *, seconds: int, abilities: Sequence[str]) -> None:
        return

    def pull(self, seen: model.Seen, now: float) -> model.Wanted:
        with self._changed:
            volumes = tuple(self._volume(*one) for one in self._volumes.values())
            self._pulled = self._version
            self._changed.notify_all()
        states = dict.fromkeys(self.nodes, REPLICA_AVAILABLE)
        return model.Wanted(
            volumes,
            nodes=states,
            time=now,
            stale=False,
            abilities=frozenset({model.CAN_REPORT_ARRAYS}),
        )

    def _volume(self, volume: props.Volume, down_time: float) -> model.Volume:
        legs = tuple(
            model.Leg(
                one.uuid,
                one.backend_id,
                self.nodes[one.backend_id].nqn,
                (self.nodes[one.backend_id].portal,),
                one.state,
                one.freshness,
                one.events,
                replaces=one.replaces,
            )
            for one in self._records[volume.uuid]
        )
        return model.Volume(
            volume.uuid,
            volume.alias,
            legs,
            replicas=2,
            down_time=down_time,
            array_state=props.OPEN,
            size=volume.size,
        )

    def report_leg(self, volume: model.Volume, leg: str, state: str) -> None:
        with self._ruled():
            ruled = self._legs(volume.uuid)[1]
            one = cast(Replica, self._one(volume.uuid, leg))
            law.note(one, state, int(time.time()), proven=False, replicated=True)
            law.settle(ruled)

    def report_array(self, volume: model.Volume, legs: Sequence[tuple[str, str, int]]) -> None:
        with self._ruled():
            ruled = self._legs(volume.uuid)[1]
            for leg, state, events in legs:
                one = self._one(volume.uuid, leg)
                ruled_one = cast(Replica, one)
                law.note(ruled_one, state, int(time.time()), proven=True, replicated=True)
                one.events = events or one.events
            law.judge(ruled, {leg: events for leg, _, events in legs})

    def export(self, volume: model.Volume) -> None:
        return

    def request_replacement(self, volume: model.Volume, lost: str) -> str:
        with self._ruled():
            records, ruled = self._legs(volume.uuid)
            law.check_add(volume.uuid, ruled)
            node = next(name for name in self.nodes if name not in [r.backend_id for r in records])
            leg = str(uuid.uuid4())
            self.nodes[node].add(leg, self.size)
            records.append(Record(leg, node, volume.uuid, REPLICA_UNKNOWN, BLANK, replaces=lost))
            return leg

    def retire(self, volume: model.Volume, leg: str) -> None:
        with self._ruled():
            one = cast(Replica, self._one(volume.uuid, leg))
            law.check_terminate(one, self._legs(volume.uuid)[1])
            law.enter(one, REPLICA_TERMINATING, int(time.time()))

    def confirm(self, volume: model.Volume, leg: model.Leg) -> None:
        with self._ruled():
            self._records[volume.uuid].remove(self._one(volume.uuid, leg.uuid))

    def report_task(self, task: str, *, state: str, status: str, progress: float) -> None:
        raise VendorError(f"there is no task {task}", definite=True)

    def task(self, uuid: str) -> model.Task | None:
        return None

    def wait(self, since: int | None, seconds: int) -> News:
        with self._changed:
            begin = self._version if since is None else since
            self._changed.wait_for(lambda: self._version > begin, seconds)
            return News(self._version, self._version > begin)

    def tell(self, level: str, message: str, details: Mapping[str, Any]) -> None:
        return
