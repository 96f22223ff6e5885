# SPDX-License-Identifier: Apache-2.0
"""The provisioner dies in the middle of its work, on real nodes."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field

from kumo_client import errors
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import StorageClass, VolumeCreate
from lab.controlplane import Client, ControlPlane, inventory
from lab.scenario import Context, Needs

SUMMARY = "SIGKILL of the provisioner during create, snapshot and delete leaves no orphan"
NEEDS = Needs(storage=2, compute=0)
# Seconds after the start of a round at which the process dies; a round takes longer than that.
MOMENTS = (0.2, 0.5, 0.9, 1.4, 2.0)
WORKERS = 3


@dataclass
class Told:
    """What callers were told: volumes and snapshots that exist, by answers of success."""

    volumes: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    # An answer was lost: these may exist or not.
    unsure: set[str] = field(default_factory=set)
    # Errors of a provisioner that still answered.
    refused: list[str] = field(default_factory=list)


def run(ctx: Context) -> None:
    """Let workers create, snapshot and delete; kill; reconcile; compare with the nodes."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    for moment in MOMENTS:
        with ctx.step(f"killed {moment:.1f} s into creates, snapshots and deletes"):
            told = _round(plane, moment)
            ctx.check(not told.refused, f"refused before the kill: {told.refused}")
            plane.start_provisioner(ctx.progress)
            _settle(ctx, plane, told)
            _compare(ctx, plane)
            _empty(ctx, plane)


def _round(plane: ControlPlane, moment: float) -> Told:
    told, stop = Told(), threading.Event()
    workers = [threading.Thread(target=_work, args=(plane, told, stop)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    time.sleep(moment)
    plane.kill()
    stop.set()
    for worker in workers:
        worker.join()
    return told


def _work(plane: ControlPlane, told: Told, stop: threading.Event) -> None:
    client = plane.client(budget=5.0)
    try:
        while not stop.is_set():
            _one_life(client, told)
    except errors.CommunicationError:
        # The provisioner is gone: the caller's end of a crash.
        stop.set()
    except errors.KumoError as error:
        told.refused.append(str(error))
    finally:
        client.close()


def _one_life(client: Client, told: Told) -> None:
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
    told.snapshots.discard(snapshot)
    told.unsure.add(snapshot)
    client.delete_snapshot(snapshot)
    told.unsure.discard(snapshot)


def _settle(ctx: Context, plane: ControlPlane, told: Told) -> None:
    client = plane.client()
    try:
        client.reconcile()
        volumes = {item.uuid for item in client.volumes()}
        snapshots = {item.snapshot_id for item in client.snapshots()}
    finally:
        client.close()
    lost = (told.volumes - volumes) | (told.snapshots - snapshots)
    ctx.check(not lost, f"told as created, but gone: {lost}")
    extra = (volumes - told.volumes - told.unsure) | (snapshots - told.snapshots - told.unsure)
    ctx.check(not extra, f"nobody asked for these: {extra}")


def _compare(ctx: Context, plane: ControlPlane) -> None:
    """One LV per replica and one per snapshot and node, and no other."""
    client = plane.client()
    try:
        replicas = {f"lv r-{leg.uuid}" for item in client.volumes() for leg in item.location}
        copies = sum(2 for _ in client.snapshots())
    finally:
        client.close()
    seen = [line for lines in inventory(ctx.lab).values() for line in lines]
    found = {line for line in seen if line.startswith("lv r-")}
    ctx.check(found == replicas, f"on the nodes {found - replicas}, missing {replicas - found}")
    snapshots = sum(line.startswith("lv s-") for line in seen)
    ctx.check(snapshots == copies, f"{snapshots} snapshot LVs, {copies} wanted")


def _empty(ctx: Context, plane: ControlPlane) -> None:
    client = plane.client()
    try:
        for snapshot in client.snapshots():
            client.delete_snapshot(snapshot.snapshot_id)
        for volume in client.volumes():
            client.delete_volume(volume.uuid)
    finally:
        client.close()
    left = inventory(ctx.lab)
    ctx.check(not any(left.values()), f"left behind: {left}")
