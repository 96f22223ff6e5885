# SPDX-License-Identifier: Apache-2.0
"""Volumes and snapshots made and deleted all the time, and what must be true afterwards.

For scenarios in which something dies meanwhile. Whoever was told that something exists must find
it again; whoever was told that something is gone, or that it could not be made, must not; and what
is on the nodes is what the provisioner shows.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field

from kumo_client import errors
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import StorageClass, Volume, VolumeCreate
from lab.controlplane import Client, ControlPlane, inventory
from lab.scenario import Context

WORKERS = 3


@dataclass
class Told:
    """What callers were told: volumes and snapshots that exist, by answers of success."""

    volumes: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    # The answer was lost, or said that the outcome is not known: these may exist or not.
    unsure: set[str] = field(default_factory=set)
    # Errors of a provisioner that still answered.
    refused: list[errors.KumoError] = field(default_factory=list)


class Churn:
    """Some callers that create, snapshot and delete until they are stopped.

    :param patient: go on after an error of the provisioner; otherwise a caller ends there.
    """

    def __init__(self, plane: ControlPlane, *, patient: bool = False) -> None:
        self.told = Told()
        self._plane = plane
        self._patient = patient
        self._stop = threading.Event()
        self._workers = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    def stop(self) -> Told:
        """End the callers; what they were told."""
        self._stop.set()
        for worker in self._workers:
            worker.join()
        return self.told

    def _work(self) -> None:
        # As long as existing clients wait: a call may have to give up on a dead node twice.
        client = self._plane.client(budget=60.0 if self._patient else 5.0)
        try:
            while not self._stop.is_set():
                self._try(client)
        finally:
            client.close()

    def _try(self, client: Client) -> None:
        try:
            _one_life(client, self.told, self._stop)
        except errors.CommunicationError as error:
            # The provisioner is gone: the caller's end of a crash.
            if self._patient:
                self.told.refused.append(error)
            else:
                self._stop.set()
        except errors.KumoError as error:
            self.told.refused.append(error)
            if not self._patient:
                self._stop.set()
            self._stop.wait(0.3)


def _one_life(client: Client, told: Told, stop: threading.Event) -> None:
    volume, snapshot = str(uuid.uuid4()), str(uuid.uuid4())
    kind = StorageClass(num_replicas=2)
    told.unsure.add(volume)
    client.create_volume(
        VolumeCreate(uuid=volume, alias=f"v-{volume}", capacity=1, storage_class=kind)
    )
    told.volumes.add(volume)
    told.unsure.discard(volume)
    told.unsure.add(snapshot)
    client.create_snapshot(
        SnapshotCreate(alias=f"s-{snapshot}", volume_id=volume, snapshot_id=snapshot)
    )
    told.snapshots.add(snapshot)
    told.unsure.discard(snapshot)
    if stop.is_set():
        return
    told.snapshots.discard(snapshot)
    told.unsure.add(snapshot)
    client.delete_snapshot(snapshot)
    told.unsure.discard(snapshot)


def check(ctx: Context, plane: ControlPlane, told: Told, away: str = "") -> None:
    """Reconcile, and compare what is there with what callers were told.

    :param away: address of a node that was away meanwhile. A snapshot that was taken once the
        provisioner knew of it has no part there.
    """
    client = plane.client()
    try:
        client.reconcile()
        volumes = {item.uuid: item for item in client.volumes()}
        snapshots = {item.snapshot_id: item for item in client.snapshots()}
    finally:
        client.close()
    lost = (told.volumes - set(volumes)) | (told.snapshots - set(snapshots))
    ctx.check(not lost, f"told as created, but gone: {lost}")
    extra = set(volumes) - told.volumes - told.unsure
    extra |= set(snapshots) - told.snapshots - told.unsure
    ctx.check(not extra, f"nobody asked for these: {extra}")
    wanted = {f"lv r-{leg.uuid}" for item in volumes.values() for leg in item.location}
    seen = [line for lines in inventory(plane.lab).values() for line in lines]
    found = {line for line in seen if line.startswith("lv r-")}
    ctx.check(found == wanted, f"on the nodes {found - wanted}, missing {wanted - found}")
    _check_parts(ctx, plane, [volumes[item.volume_id] for item in snapshots.values()], away)


def _check_parts(ctx: Context, plane: ControlPlane, origins: list[Volume], away: str) -> None:
    """A part of each snapshot is where its origin has a leg.

    :param origins: one of each snapshot.
    """
    wanted = Counter(leg.backend.mgmt_ips[0] for item in origins for leg in item.location)
    seen = inventory(plane.lab)
    for node in plane.lab.storage:
        held = sum(line.startswith("lv s-") for line in seen[node.name])
        least = 0 if node.address == away else wanted[node.address]
        ctx.check(
            least <= held <= wanted[node.address],
            f"{held} snapshot LVs on {node.name}, {wanted[node.address]} wanted",
        )


def clear(ctx: Context, plane: ControlPlane) -> None:
    """Delete everything; the nodes are empty then."""
    client = plane.client()
    try:
        for snapshot in client.snapshots():
            client.delete_snapshot(snapshot.snapshot_id)
        for volume in client.volumes():
            client.delete_volume(volume.uuid)
    finally:
        client.close()
    left = inventory(plane.lab)
    ctx.check(not any(left.values()), f"left behind: {left}")
