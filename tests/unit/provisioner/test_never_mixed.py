# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, the legs in sync of a volume that no host has hold the same data.

Random snapshots, copies, reverts, attaches, failures of legs and lost calls, over node models whose
replicas carry a mark of their data. While a host has a volume each leg has its own mark, as if
every write was still in flight: a copy that took its legs from two of them would show two marks.
"""

import contextlib
import itertools
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.schemas.host import UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate, Revert
from kumo_provisioner import reconcile
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.services import holding, publish, revert, snapshots, volumes
from tests.unit.provisioner.conftest import HOST, FakeNodes, add_node, volume
from tests.unit.provisioner.live import (
    ABLE,
    data,
    legs,
    note,
    note_volume,
    rows_of,
    write,
)
from tests.unit.provisioner.stories import T, made_snapshot, published, rows, shown

NODES = 4
FAULTY = ("put_replica", "put_snapshot", "delete_replica", *["revert_replica"] * 4)
STEPS = 60
# How often each thing happens.
RULES = {
    "create": 1,
    "attach": 4,
    "detach": 3,
    "lose_leg": 2,
    "synchronise": 1,
    "snapshot": 4,
    "copy": 3,
    "clone": 2,
    "revert": 4,
    "delete_snapshot": 1,
    "break_node": 3,
    "heal_nodes": 2,
}


class Machine:
    """What users, hosts and networks do, and what must hold all the time."""

    def __init__(self, conf, database, directory, seed):
        shutil.copy(database, directory / "p.db")
        url = f"sqlite:///{directory / 'p.db'}"
        self.core = Core(conf, Database(url), FakeNodes(), Locks(0))
        self.random = random.Random(seed)
        for _ in range(NODES):
            add_node(self.core, total_bytes=1 << 40)
        self.marks, self.names = itertools.count(1), itertools.count(1)
        # Marks that a snapshot may give: those of the legs in sync when it was taken.
        self.allowed = {}
        self.attached = set()

    def run(self, steps):
        """Do so many things, and look after each."""
        rules = [getattr(self, name) for name, weight in RULES.items() for _ in range(weight)]
        for _ in range(2):
            self.create()
        for _ in range(steps):
            self.random.choice(rules)()
            self.nothing_is_mixed()
        self.heal_nodes()
        self.nothing_is_mixed()
        self.nothing_is_left()

    def nothing_is_left(self):
        held = {one.uuid for one in rows(self.core, models.Replica)}
        held |= {one.uuid for one in rows(self.core, models.SnapshotPart)}
        unsettled = [one.unsettled for one in rows(self.core, models.Volume)]
        assert self.core.nodes.objects() == held
        assert not any(unsettled)

    # -- what is there --------------------------------------------------------------------------

    def volumes(self):
        return [one.uuid for one in volumes.list_all(self.core, T)]

    def some(self, items):
        items = sorted(items)
        return self.random.choice(items) if items else None

    def flip(self):
        return self.random.random() < 0.5

    def name(self):
        return f"name-{next(self.names)}"

    def fork(self, uid):
        """Each leg in sync gets a mark of its own."""
        write(self.core, uid, *[next(self.marks) for _ in rows_of(self.core, uid)])

    def agree(self, uid):
        """The host has brought the legs in sync to one state."""
        found = data(self.core, uid)
        if found:
            write(self.core, uid, found[0])

    # -- rules ----------------------------------------------------------------------------------

    def create(self):
        with contextlib.suppress(errors.KumoError):
            uid = volumes.create(
                self.core, T, volume(self.name(), replicas=self.random.choice((1, 2, 2, 3)))
            )
            note_volume(self.core, uid, array_state="clean")
            write(self.core, uid, next(self.marks))

    def attach(self):
        uid = self.some(set(self.volumes()) - self.attached)
        if uid is None:
            return
        with contextlib.suppress(errors.KumoError):
            published(self.core, uid, ABLE if self.flip() else HOST)
            self.attached.add(uid)
            note_volume(self.core, uid, array_state="open")
            self.fork(uid)

    def detach(self):
        in_order = self.flip()
        uid = self.some(self.attached)
        if uid is None:
            return
        host = shown(self.core, uid).published_hosts[0]
        if in_order:
            self.agree(uid)
        publish.unpublish(self.core, T, UnpublishRequest(vol_id=uid, host_id=host))
        note_volume(self.core, uid, array_state="clean" if in_order else "open")
        self.attached.discard(uid)

    def lose_leg(self):
        uid = self.some(self.attached)
        if uid is None or len([one for one in rows_of(self.core, uid) if one.in_sync]) < 2:
            return
        number = self.random.randrange(len(rows_of(self.core, uid)))
        if rows_of(self.core, uid)[number].in_sync:
            note(self.core, uid, number, state="Missing", freshness=models.STALE)
        self.fork(uid)

    def synchronise(self):
        uid = self.some(self.attached)
        if uid is None or not data(self.core, uid):
            return
        for number, _ in enumerate(rows_of(self.core, uid)):
            note(self.core, uid, number, state="Available", freshness=models.FRESH)
        self.fork(uid)

    def snapshot(self):
        held, kept = self.flip(), self.flip()
        uid = self.some(self.volumes())
        if uid is None:
            return
        allowed = set(data(self.core, uid))

        def wait_held(_core, _task):
            if held and kept:
                self.agree(uid)
            return held

        def confirm(_core, _task):
            self.fork(uid)
            return kept

        holding.wait_held, holding.confirm = wait_held, confirm
        with contextlib.suppress(errors.KumoError):
            snap = made_snapshot(self.core, uid, self.name())
            self.allowed[snap] = allowed

    def copy(self):
        snap = self.some(self.allowed)
        if snap is None:
            return
        request = SnapshotVolumeCreate(alias=self.name(), snapshot_id=snap)
        with contextlib.suppress(errors.KumoError):
            uid = snapshots.create_volume(self.core, T, request)
            assert len(set(data(self.core, uid))) == 1
            assert set(data(self.core, uid)) <= self.allowed[snap]

    def clone(self):
        uid = self.some(self.volumes())
        if uid is None:
            return
        request = CloneCreate(source_volume_id=uid, alias=self.name())
        with contextlib.suppress(errors.KumoError):
            made = snapshots.clone(self.core, T, request)
            assert len(set(data(self.core, made))) == 1
            assert set(data(self.core, made)) <= set(data(self.core, uid))

    def revert(self):
        snap = self.some(self.allowed)
        if snap is None:
            return
        uid = snapshots.get(self.core, T, snap)[0].volume_id
        with contextlib.suppress(errors.KumoError):
            revert.revert(self.core, T, Revert(volume_id=uid, snapshot_id=snap))
            assert len(set(data(self.core, uid))) == 1
            assert set(data(self.core, uid)) <= self.allowed[snap]

    def delete_snapshot(self):
        snap = self.some(self.allowed)
        if snap is None:
            return
        with contextlib.suppress(errors.BusyError):
            snapshots.delete(self.core, T, snap)
            del self.allowed[snap]

    def break_node(self):
        key = (1000 + self.random.randrange(NODES), self.random.choice(FAULTY))
        self.core.nodes.faults[key] = self.random.choice(
            ["lost request", "lost answer", errors.ConflictError("refused")]
        )

    def heal_nodes(self):
        self.core.nodes.faults.clear()
        for _ in range(2):
            reconcile.run(self.core)

    # -- what must hold -------------------------------------------------------------------------

    def nothing_is_mixed(self):
        for row in rows(self.core, models.Volume):
            resting = row.uuid not in self.attached and row.array_state != models.ARRAY_OPEN
            if row.status != models.AVAILABLE or row.unsettled or not resting:
                continue
            assert len(set(data(self.core, row.uuid))) <= 1, row.uuid
            for leg in legs(self.core, row.uuid):
                assert leg.array is None or leg.array.uuid == row.uuid


def test_legs_are_never_mixed(conf, empty_database, monkeypatch):
    monkeypatch.setattr(holding, "wait_held", holding.wait_held)
    monkeypatch.setattr(holding, "confirm", holding.confirm)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 1 << 32))
    def stories(seed):
        with tempfile.TemporaryDirectory() as directory:
            machine = Machine(conf, empty_database, Path(directory), seed)
            try:
                machine.run(STEPS)
            finally:
                machine.core.close()

    stories()
