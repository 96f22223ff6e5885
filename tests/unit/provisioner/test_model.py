# SPDX-License-Identifier: Apache-2.0
"""The whole provisioner against a model: random calls, crashes between any two steps, other callers
and reconciles between any two steps, lost and repeated answers, nodes that come and go.

What callers were told has to be true in the end, and the nodes hold what the record says.
"""

import os
import pathlib
import tempfile
import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.host import HostProbe, UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import (
    MAX_LEGS,
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    CloneCreate,
    ReplicaAdd,
    StorageClassUpdate,
    VolumeModify,
)
from kumo_provisioner import reconcile, settling
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    classes,
    publish,
    replicas,
    snapshots,
    volumes,
)
from tests.unit.provisioner import conftest, live, stories
from tests.unit.provisioner.crashing import Plant, Repeatable
from tests.unit.provisioner.model_truths import (
    GONE,
    THERE,
    UNSURE,
    Truths,
    lacks,
    legs_to_go,
    unsettled,
    waits_for_its_host,
    waits_for_room,
)

T = stories.T
# What is synced to disk costs nothing there.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Any step of the longest operation, and beyond it.
DEATHS = st.none() | st.none() | st.integers(0, 24)
# A step of most operations.
SOON = st.integers(0, 6)
# Which of the objects that there may be; the newest are the most interesting.
PICK = st.integers(0, 7)
NODE_VERBS = (
    "put_replica",
    "delete_replica",
    "put_snapshot",
    "delete_snapshot",
    "put_export",
    "delete_export",
    "resize_replica",
    "inventory",
)
CALLS = [
    "create",
    "delete",
    "extend",
    "clone",
    "snapshot",
    "publish",
    "unpublish",
    "add leg",
    "class",
    "delete snapshot",
    "restore",
]
# What the pools of the first node, and of the others, can guarantee: operations/s and KB/s.
DELIVERED = [(0, 0), (12, 9), (9, 12), (12, 12)]
HOSTS = [
    HostProbe(host_nqn=f"nqn.2014-08.org.nvmexpress:uuid:host-{number}", host_id=f"host-{number}")
    for number in range(2)
]


class Machine(Truths, RuleBasedStateMachine):
    """Calls of users, and everything that goes wrong meanwhile."""

    conf = None
    empty_database = None
    repeatable = None

    def __init__(self):
        super().__init__()
        self.repeatable.begin()
        self._directory = tempfile.TemporaryDirectory(prefix="kumo-model-", dir=MEMORY)
        self.plant = Plant(pathlib.Path(self._directory.name), self.empty_database, self.conf)
        self.volumes = {}
        self.snapshots = {}
        # (volume, host id) that a caller was told to be published, or not.
        self.published = {}

    @property
    def core(self):
        return self.plant.core

    @initialize()
    def fleet(self):
        for number in range(4):
            sizes = {"ssd-a": 18 * GIB, "ssd-b": 13 * GIB} if number % 2 else {"pool": 28 * GIB}
            iops, bw = DELIVERED[number]
            rack = f"rack-{number // 2}"
            conftest.add_node(self.core, rack=rack, pools=sizes, max_iops=iops, max_bw=bw)

    # -- what goes wrong ----------------------------------------------------------------------

    @precondition(lambda self: not self.plant.nodes.down)
    @rule(number=st.integers(1000, 1003))
    def node_goes_down(self, number):
        self.plant.nodes.down.add(number)
        self._probe()

    @precondition(lambda self: self.plant.nodes.down)
    @rule()
    def node_returns(self):
        self.plant.nodes.down.clear()
        self._probe()

    @rule(
        number=st.integers(1000, 1003),
        verb=st.sampled_from(NODE_VERBS),
        fault=st.sampled_from(["lost request", "lost answer"]),
    )
    def calls_get_lost(self, number, verb, fault):
        self.plant.nodes.faults = {(number, verb): fault}

    @precondition(lambda self: self.plant.nodes.faults)
    @rule()
    def the_network_is_mended(self):
        self.plant.nodes.faults.clear()

    def _probe(self):
        for _ in range(self.conf.reconcile.probe_failures):
            backends.probe(self.core)

    @staticmethod
    def _some(known, pick):
        """One of the newest that may be there; of those that are gone only when there is no other.

        So the last one deleted is asked for again now and then.
        """
        there = [uid for uid, told in known.items() if told != GONE] or list(known)
        return there[-1 - pick % len(there)]

    # -- users --------------------------------------------------------------------------------

    def _call(self, death, function):
        """None when it succeeded, the error, or UNSURE when the provisioner died."""
        error = None
        with self.plant.dying(death) as plant:
            try:
                function()
            except errors.KumoError as exc:
                error = exc
        return UNSURE if plant.died else error

    def _create(self, known, death, function):
        """Note what the caller of a create was told."""
        outcome = self._call(death, function)
        # Whoever was told of an error was told that nothing is left of it.
        known.append({None: THERE, UNSURE: UNSURE}.get(outcome, GONE))

    @rule(
        replicas=st.integers(1, 3),
        gib=st.integers(1, 3),
        thin=st.booleans(),
        same_rack=st.booleans(),
        iops=st.sampled_from([0, 0, 1, 3]),
        bw=st.sampled_from([0, 0, 1, 3]),
        death=DEATHS,
    )
    def create_volume(self, replicas, gib, thin, same_rack, iops, bw, death):
        uid, told = str(uuid.uuid4()), []
        request = conftest.volume(
            uid,
            gib,
            replicas,
            uuid=uid,
            provisioning_type="THIN" if thin else "THICK",
            asked={
                "same_rack_allowed": same_rack,
                "desired_iops_per_gb": iops,
                "desired_bw_per_gb": bw,
            },
        )
        self._create(told, death, lambda: volumes.create(self.core, T, request))
        (self.volumes[uid],) = told

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, death=DEATHS)
    def create_volume_again(self, pick, death):
        """A caller that has lost an answer repeats its call."""
        uid = self._some(self.volumes, pick)
        if self.volumes[uid] != UNSURE:
            return
        request = conftest.volume(uid, 1, 1, uuid=uid)
        outcome = self._call(death, lambda: volumes.create(self.core, T, request))
        exists = isinstance(outcome, errors.AlreadyExistsError)
        if outcome is None or exists:
            self.volumes[uid] = THERE
        elif outcome != UNSURE:
            self.volumes[uid] = GONE

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, death=DEATHS)
    def delete_volume(self, pick, death):
        uid = self._some(self.volumes, pick)
        outcome = self._call(death, lambda: volumes.delete(self.core, T, uid))
        self._deleted(self.volumes, uid, outcome)

    def _deleted(self, known, uid, outcome):
        if outcome == UNSURE:
            known[uid] = UNSURE if known[uid] != GONE else GONE
        elif outcome is None or isinstance(outcome, errors.NotExistsError):
            assert outcome is None or known[uid] != THERE
            known[uid] = GONE

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, more=st.integers(0, 2), death=DEATHS)
    def extend_volume(self, pick, more, death):
        uid = self._some(self.volumes, pick)

        def extend():
            size = volumes.get(self.core, T, uid)[0].capacity + more
            volumes.extend(self.core, T, uid, size)

        self._call(death, extend)

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, death=DEATHS)
    def create_snapshot(self, pick, death):
        uid = self._some(self.volumes, pick)
        snapshot, told = str(uuid.uuid4()), []
        request = SnapshotCreate(alias=snapshot, volume_id=uid, snapshot_id=snapshot)
        self._create(told, death, lambda: snapshots.create(self.core, T, request))
        (self.snapshots[snapshot],) = told

    @precondition(lambda self: self.snapshots)
    @rule(pick=PICK, death=DEATHS)
    def delete_snapshot(self, pick, death):
        snapshot = self._some(self.snapshots, pick)
        outcome = self._call(death, lambda: snapshots.delete(self.core, T, snapshot))
        self._deleted(self.snapshots, snapshot, outcome)

    @precondition(lambda self: self.snapshots)
    @rule(pick=PICK, death=DEATHS)
    def volume_from_snapshot(self, pick, death):
        snapshot = self._some(self.snapshots, pick)
        uid, told = str(uuid.uuid4()), []
        request = SnapshotVolumeCreate(alias=uid, snapshot_id=snapshot, volume_id=uid)
        self._create(told, death, lambda: snapshots.create_volume(self.core, T, request))
        (self.volumes[uid],) = told

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, death=DEATHS)
    def clone(self, pick, death):
        source = self._some(self.volumes, pick)
        uid, told = str(uuid.uuid4()), []
        request = CloneCreate(source_volume_id=source, alias=uid, volume_id=uid)
        self._create(told, death, lambda: snapshots.clone(self.core, T, request))
        (self.volumes[uid],) = told

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, host=st.sampled_from(HOSTS), death=DEATHS)
    def publish(self, pick, host, death):
        uid = self._some(self.volumes, pick)
        outcome = self._call(death, lambda: stories.published(self.core, uid, host))
        if outcome is None:
            self.published[uid, host.host_id] = THERE
        elif self.published.get((uid, host.host_id)) != THERE:
            self.published[uid, host.host_id] = UNSURE

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, host=st.sampled_from(HOSTS), death=DEATHS)
    def unpublish(self, pick, host, death):
        uid = self._some(self.volumes, pick)
        request = UnpublishRequest(host_id=host.host_id, vol_id=uid)
        outcome = self._call(death, lambda: publish.unpublish(self.core, T, request))
        if outcome is None or isinstance(
            outcome, errors.VolumeNotPublishedError | errors.NotExistsError
        ):
            self.published[uid, host.host_id] = GONE
        elif outcome == UNSURE:
            self.published[uid, host.host_id] = UNSURE

    # -- replicas -----------------------------------------------------------------------------

    def _leg(self, uid, pick):
        """A leg of a volume, None when the volume has none."""
        legs = sorted(self._legs(uid))
        return legs[pick % len(legs)] if legs else None

    def _legs(self, uid):
        with self.core.db.read() as session:
            return set(session.scalars(select(models.Replica.uuid).filter_by(volume_id=uid)))

    def _safe(self, uid):
        """Legs of a volume that have all writes."""
        with self.core.db.read() as session:
            rows = session.scalars(select(models.Replica).filter_by(volume_id=uid))
            return {row.uuid for row in rows if row.in_sync}

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, death=DEATHS)
    def add_replica(self, pick, death):
        self.add_leg(self._some(self.volumes, pick), death)

    def add_leg(self, uid, death=None):
        self._call(death, lambda: replicas.add(self.core, T, uid, ReplicaAdd()))

    @precondition(lambda self: self.volumes)
    @rule(
        pick=PICK,
        leg=PICK,
        state=st.sampled_from([REPLICA_AVAILABLE, REPLICA_SYNCHRONIZING, REPLICA_MISSING]),
        death=DEATHS,
    )
    def a_host_reports(self, pick, leg, state, death):
        uid = self._some(self.volumes, pick)
        one = self._leg(uid, leg)
        if one is not None:
            self.report_leg(uid, one, state, death)

    def report_leg(self, uid, leg, state, death=None):
        self._call(death, lambda: replicas.report(self.core, T, uid, leg, state))

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, leg=PICK, confirm=st.booleans(), death=DEATHS)
    def remove_replica(self, pick, leg, confirm, death):
        uid = self._some(self.volumes, pick)
        one = self._leg(uid, leg)
        if one is not None:
            self.remove_leg(uid, one, confirm, death)

    def remove_leg(self, uid, leg, confirm, death=None):
        safe = self._safe(uid)
        verb = replicas.confirm if confirm else replicas.terminate
        self._call(death, lambda: verb(self.core, T, uid, leg))
        # Guards: whoever removes a leg never removes the last one that has all writes.
        assert not safe or self._safe(uid)

    @precondition(lambda self: self.volumes)
    @rule(pick=PICK, leg=PICK, steps=st.integers(1, 7), death=DEATHS)
    def a_host_replaces_a_leg(self, pick, leg, steps, death):
        """One leg is lost and another one added. Then the host loses the new one, too, and in the
        end all. It stops after any step, and the provisioner may die in the second."""
        uid = self._some(self.volumes, pick)
        lost = self._leg(uid, leg)
        if lost is None:
            return
        known = self._legs(uid)

        def new():
            return next(iter(self._legs(uid) - known), lost)

        def lose_all():
            for one in self._legs(uid):
                self.report_leg(uid, one, REPLICA_MISSING)

        plan = [
            lambda: self.report_leg(uid, lost, REPLICA_MISSING),
            lambda: self.add_leg(uid, death),
            lambda: self.remove_leg(uid, lost, False),
            lambda: self.remove_leg(uid, lost, True),
            lambda: self.remove_leg(uid, new(), False),
            lose_all,
            lambda: self.remove_leg(uid, new(), True),
        ]
        for step in plan[:steps]:
            step()

    @precondition(lambda self: self.volumes)
    @rule(
        pick=PICK,
        iops=st.integers(0, 3),
        wanted=st.sampled_from([None, 0, 1, 4]),
        down=st.integers(0, 5),
        replicas=st.sampled_from([None, None, 2, 3]),
        death=DEATHS,
    )
    def change_class(self, pick, iops, wanted, down, replicas, death):
        uid = self._some(self.volumes, pick)
        update = StorageClassUpdate(
            max_iops_per_gb=iops,
            desired_iops_per_gb=wanted,
            max_replica_down_time=down,
            num_replicas=replicas,
        )
        request = VolumeModify(storage_class=update)
        self._call(death, lambda: classes.modify(self.core, T, uid, request))

    @rule(death=DEATHS)
    def reconcile(self, death):
        with self.plant.dying(death):
            reconcile.run(self.core)

    # -- callers at the same time -------------------------------------------------------------

    def _do(self, what, pick):
        """What a caller does; something is made when there is nothing yet to do it to."""
        found = {"create": lambda: self.create_volume(1 + pick % 3, 2, False, True, 3, 3, None)}
        if self.volumes:
            found |= {
                "delete": lambda: self.delete_volume(pick, None),
                "extend": lambda: self.extend_volume(pick, 2, None),
                "clone": lambda: self.clone(pick, None),
                "snapshot": lambda: self.create_snapshot(pick, None),
                "publish": lambda: self.publish(pick, HOSTS[pick % 2], None),
                "unpublish": lambda: self.unpublish(pick, HOSTS[pick % 2], None),
                "add leg": lambda: self.add_replica(pick, None),
                "class": lambda: self.change_class(pick, 1, 4, 1, None, None),
            }
        if self.snapshots:
            found |= {
                "delete snapshot": lambda: self.delete_snapshot(pick, None),
                "restore": lambda: self.volume_from_snapshot(pick, None),
            }
        found.get(what, found["create"])()

    @rule(
        first=st.sampled_from(CALLS),
        second=st.sampled_from(CALLS),
        one=PICK,
        other=PICK,
        after=SOON,
    )
    def two_callers(self, first, second, one, other, after):
        """One is at work while another one comes and goes; the same object is Busy meanwhile."""
        with self.plant.meanwhile(after, lambda: self._do(second, other)):
            self._do(first, one)

    @rule(first=st.sampled_from(CALLS), one=PICK, after=SOON)
    def a_reconcile_meanwhile(self, first, one, after):
        """It takes what is at work for no remains."""
        with self.plant.meanwhile(after, lambda: reconcile.run(self.core)):
            self._do(first, one)

    # -- what is true in the end --------------------------------------------------------------

    def teardown(self):
        try:
            self._end()
        finally:
            self.plant.close()
            self._directory.cleanup()

    def _end(self):
        self.plant.nodes.down.clear()
        self.plant.nodes.faults.clear()
        self._probe()
        self._settle()
        self.told_is_true()
        self.nodes_hold_the_record()
        for _ in range(MAX_LEGS):
            if not self._hosts_do_their_part():
                break
            self._settle()
        self.nodes_hold_the_record()
        # Nothing is left to wait for but room.
        with self.core.db.read() as session:
            assert session.scalars(legs_to_go()).all() == []
            for volume in session.scalars(unsettled()):
                assert waits_for_room(session, volume)

    def _settle(self):
        """What waits then, with all nodes there, waits for a host to do its part, or for room."""
        for _ in range(3):
            counts = reconcile.run(self.core)
        with self.core.db.read() as session:
            found = session.scalars(unsettled()).all()
            for volume in found:
                assert volume.unsettled == settling.REPLICAS
                assert waits_for_its_host(volume) or waits_for_room(session, volume)
            assert counts.waiting == sum(lacks(volume) > 0 for volume in found)
        assert counts.unknown == 0

    def _hosts_do_their_part(self):
        """Confirm what is to go, and bring the legs back and fill them, wherever that is waited
        for; gives whether it was anywhere."""
        with self.core.db.read() as session:
            waiting = {leg.volume for leg in session.scalars(legs_to_go())}
            waiting.update(session.scalars(unsettled()))
            states = {
                volume.uuid: {leg.uuid: leg.state for leg in volume.replicas} for volume in waiting
            }
        for uid, legs in sorted(states.items()):
            stories.published(self.core, uid, live.ABLE)
            for leg, state in legs.items():
                if state == REPLICA_TERMINATING:
                    replicas.confirm(self.core, T, uid, leg)
                    continue
                # One that was not fresh is believed the second time.
                for _ in range(2):
                    replicas.report(self.core, T, uid, leg, REPLICA_AVAILABLE)
            publish.unpublish(self.core, T, UnpublishRequest(host_id=live.ABLE.host_id, vol_id=uid))
        return bool(states)


@pytest.fixture
def machine(conf, empty_database, monkeypatch):
    monkeypatch.setattr(Machine, "conf", conf)
    monkeypatch.setattr(Machine, "empty_database", empty_database)
    monkeypatch.setattr(Machine, "repeatable", Repeatable(monkeypatch))
    return Machine


def test_what_waits_for_its_host_goes_on_with_it(machine):
    """The provisioner dies while a leg is added, and that leg and the last one are lost."""
    one = machine()
    one.fleet()
    one.create_volume(2, 1, False, True, 0, 0, None)
    one.publish(0, HOSTS[0], None)
    one.a_host_replaces_a_leg(0, 0, 6, 2)
    (uid,) = one.volumes
    with one.core.db.read() as session:
        volume = session.get_one(models.Volume, uid)
        legs = {(leg.state, leg.freshness) for leg in volume.replicas}
        assert legs == {(REPLICA_TERMINATING, models.BLANK), (REPLICA_MISSING, models.FRESH)}
        assert volume.unsettled == settling.REPLICAS
    assert reconcile.run(one.core).waiting == 1
    one.teardown()


@pytest.mark.slow
def test_the_provisioner_against_the_model(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
