# SPDX-License-Identifier: Apache-2.0
"""Three instances on one PostgreSQL or MariaDB, under load, killed and frozen at random moments.

Whatever happened: what was answered as created is there, nodes hold what the record says, the
counters of pools are the sums of their rows, and nothing waits for an instance that is gone.
"""

import random
import signal
import threading
import time
from collections import Counter

import pytest
from sqlalchemy import func, select

from kumo_client import errors
from kumo_client.schemas import task as task_wire
from kumo_client.schemas.backend import DRAINING
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.volume import (
    REPLICA_AVAILABLE,
    REPLICA_TERMINATING,
    MigrateVolume,
    StorageClassUpdate,
    VolumeModify,
)
from kumo_provisioner import settling
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.services import capacity
from tests.fakes.databases import KINDS
from tests.fakes.fleet import Fleet
from tests.fakes.provisioner import ProvisionerProcess
from tests.functional.provisioner import common

# At least so long and so much; a slow machine gets more time for it.
LOAD_SECONDS, MOST_SECONDS = 18.0, 180.0
OPERATIONS = 80
# What each node can guarantee, operations/s and KB/s, and what a volume is guaranteed per GiB.
DELIVERED, GUARANTEED = 100, 10
# Verbs of which one at least has to succeed.
HARD = {"_add_leg", "_drop_leg", "_migrate", "_agent", "_drain", "_guarantee"}
OPTIONS = {
    "instances": {"heartbeat_interval": "0.25", "dead_after": "1.5"},
    "reconcile": {"interval": "2", "probe_interval": "0.5", "probe_failures": "2"},
    "server": {"lock_timeout": "2"},
    "nodes": {"connect_timeout": "1", "budget": "4", "probe_budget": "1"},
    "tasks": {"poll_interval": "0.5"},
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def server(request):
    made = KINDS[request.param]()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def database(server):
    """The database of the server, empty but for what tells it from others."""
    made = Database(server.url)
    made.upgrade()
    with made.write() as session:
        for table in reversed(models.Base.metadata.sorted_tables):
            if table is not models.Identity.__table__:
                session.execute(table.delete())
    yield made
    made.close()


@pytest.fixture
def instances(server, database, tmp_path):
    options = {**OPTIONS, "database": {"connection": server.url}}
    made = [ProvisionerProcess(tmp_path / "kumo-0", options)]
    made += [ProvisionerProcess(tmp_path / f"kumo-{n}", options, beside=made[0]) for n in (1, 2)]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for one in made:
            if one.process is not None:
                one.process.send_signal(signal.SIGCONT)
            one.kill()


@pytest.fixture
def fleet(instances):
    nodes = Fleet(instances[0].node_certificate, instances[0].node_token)
    for node in nodes.add(4, max_iops=DELIVERED, max_bw=DELIVERED):
        instances[0].register(node)
    yield nodes
    nodes.close()


def host(number):
    return HostProbe(
        host_nqn=f"nqn.2014-08.org.nvmexpress:uuid:host-{number}",
        host_id=f"host-{number}",
        name=f"compute-{number}",
    )


class Load:
    """Threads of clients that do random things to random volumes on random instances."""

    def __init__(self, instances, threads=5):
        self._instances = instances
        self._stop = threading.Event()
        self._guard = threading.Lock()
        # uuids that were answered as created, and that nobody has asked to delete.
        self.volumes, self.snapshots = set(), set()
        # Those of them that were made with two replicas.
        self.arrays = set()
        self.codes = Counter()
        # How often each verb succeeded.
        self.done = Counter()
        self.defects = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, number):
        rng = random.Random(number)
        clients = [one.new_client(budget=6) for one in self._instances]
        verbs = [self._create] * 4 + [self._delete, self._snapshot, self._delete_snapshot]
        verbs += [self._clone, self._publish, self._publish, self._unpublish, self._extend]
        verbs += [self._guarantee, self._add_leg, self._drop_leg, self._migrate, self._agent] * 2
        # One operator at a time.
        verbs += [self._drain] * 4 if number == 0 else []
        while not self._stop.is_set():
            verb = rng.choice(verbs)
            try:
                verb(rng.choice(clients), rng)
                with self._guard:
                    self.codes["Success"] += 1
                    self.done[verb.__name__] += 1
            except errors.KumoError as exc:
                self.codes[exc.code] += 1
                if exc.code == "InternalError":
                    self.defects.append(str(exc))
                time.sleep(0.01)

    def _one(self, rng, of, *, take=False):
        with self._guard:
            if not of:
                raise errors.NotExistsError("nothing is there yet")
            uid = rng.choice(sorted(of))
            if take:
                of.discard(uid)
            return uid

    def _note(self, of, uid):
        with self._guard:
            of.add(uid)

    def _create(self, client, rng):
        create = common.volume(rng.choice([1, 2]))
        create.storage_class.desired_iops_per_gb = rng.choice([0, GUARANTEED])
        create.storage_class.desired_bw_per_gb = rng.choice([0, GUARANTEED])
        client.create_volume(create)
        self._note(self.volumes, create.uuid)
        if create.storage_class.num_replicas > 1:
            self._note(self.arrays, create.uuid)

    def _delete(self, client, rng):
        client.delete_volume(self._one(rng, self.volumes, take=True))

    def _snapshot(self, client, rng):
        uid = common.made_snapshot(client, self._one(rng, self.volumes))
        self._note(self.snapshots, uid)

    def _delete_snapshot(self, client, rng):
        client.delete_snapshot(self._one(rng, self.snapshots, take=True))

    def _clone(self, client, rng):
        uid = common.new_id()
        client.clone_volume(common.clone_of(self._one(rng, self.volumes), uid))
        self._note(self.volumes, uid)

    def _publish(self, client, rng, uid=None):
        one = host(rng.randrange(3))
        uid = uid or self._one(rng, self.volumes)
        client.publish(PublishRequest(host_id=one.host_id, vol_id=uid, host=one))

    def _unpublish(self, client, rng):
        uid = self._one(rng, self.volumes)
        client.unpublish(UnpublishRequest(host_id=f"host-{rng.randrange(3)}", vol_id=uid))

    def _extend(self, client, rng):
        client.extend_volume(self._one(rng, self.volumes), rng.choice([2, 3]))

    def _guarantee(self, client, rng):
        update = StorageClassUpdate(
            desired_iops_per_gb=rng.choice([0, GUARANTEED]),
            desired_bw_per_gb=rng.choice([0, GUARANTEED]),
        )
        client.modify_volume(self._one(rng, self.volumes), VolumeModify(storage_class=update))

    def _array(self, rng):
        with self._guard:
            arrays = self.arrays & self.volumes
        return self._one(rng, arrays)

    def _add_leg(self, client, rng):
        uid = self._array(rng)
        self._publish(client, rng, uid)
        fill(client, uid, client.add_replica(uid).uuid)

    def _drop_leg(self, client, rng):
        uid = self._array(rng)
        drop(client, uid, rng.choice(client.volume(uid).location).uuid)

    def _migrate(self, client, rng):
        uid = self._one(rng, self.volumes)
        leg = rng.choice(client.volume(uid).location)
        client.migrate_volume(MigrateVolume(vol_id=uid, rep_id=leg.uuid))

    def _agent(self, client, rng):
        """As the agent of a host: carry out a migration."""
        create = common.volume(2)
        client.create_volume(create)
        uid, old = create.uuid, client.volume(create.uuid).location[0].uuid
        self._note(self.volumes, uid)
        self._publish(client, rng, uid)
        task = client.migrate_volume(MigrateVolume(vol_id=uid, rep_id=old)).task_id
        fill(client, uid, client.add_replica(uid).uuid)
        drop(client, uid, old)
        state = {"state": task_wire.FINISHED, "task_status": "Success"}
        client.update_task(task_wire.TaskUpdate(task_id=task, **state))

    def _drain(self, client, rng):
        node = rng.choice(client.backends()).persistent_id
        client.drain_backend(node)
        time.sleep(rng.uniform(0.5, 2))
        client.stop_drain(node)


def fill(client, uid, leg):
    """As the agent of a host: a new leg is in sync; it is believed the second time."""
    for _ in range(2):
        client.report_replica(uid, leg, REPLICA_AVAILABLE)


def drop(client, uid, leg):
    """Let a leg go; while hosts have it, one of them confirms."""
    client.delete_replica(uid, leg)
    legs = {one.uuid for one in client.volume(uid).location}
    if leg in legs:
        client.confirm_replica(uid, leg)


def end_what_was_begun(client):
    """End drains, confirm for the hosts what is to go, make room for what is still to be added;
    gives whether copies are still made."""
    for node in client.backends():
        if node.state == DRAINING:
            client.stop_drain(node.persistent_id)
    for volume in client.volumes():
        for leg in volume.location:
            if leg.replica_state == REPLICA_TERMINATING:
                client.confirm_replica(volume.uuid, leg.uuid)
        if volume.unsettled == settling.REPLICAS:
            # No node may be left that could guarantee as much to one more replica.
            update = StorageClassUpdate(desired_iops_per_gb=0, desired_bw_per_gb=0)
            client.modify_volume(volume.uuid, VolumeModify(storage_class=update))
    return any(
        one.type == task_wire.OFFLINE_MIGRATION and one.state == task_wire.RUNNING
        for one in client.tasks()
    )


def settle(instances, fleet, database):
    """Wait until the dead count as dead, and reconcile until nothing is left to do."""
    fleet.settle()
    deadline = time.monotonic() + 120
    counts = {}
    while True:
        with database.read() as session:
            alive = session.scalar(select(func.count()).select_from(models.Instance))
        if alive == len(instances):
            try:
                counts = instances[0].client.reconcile()
                counts["copies"] = end_what_was_begun(instances[0].client)
            except errors.KumoError as exc:
                # A reconcile of another instance may be at the same thing.
                counts = {str(exc): 1}
                if exc.code == "InternalError":
                    raise
            if not any(counts.values()):
                return
        assert time.monotonic() < deadline, (alive, counts)
        time.sleep(0.3)


def assert_invariants(instances, fleet, database, load):
    client = instances[1].client
    with database.read() as session:
        rows = set(session.execute(select(models.Replica.uuid, models.Replica.backend_id)))
        parts = models.SnapshotPart
        rows |= set(session.execute(select(parts.uuid, parts.backend_id)))
        query = select(models.Replica.uuid, models.Host.nqn).select_from(models.Publication)
        query = query.join(models.Host).join(
            models.Replica, models.Replica.volume_id == models.Publication.volume_id
        )
        exports = set(session.execute(query))
        for table in (models.Volume, models.Snapshot):
            assert set(session.scalars(select(table.status))) <= {models.AVAILABLE}
        assert set(session.scalars(select(models.Publication.status))) <= {models.PUBLISHED}
        assert session.scalars(select(models.Garbage.uuid)).all() == []
        query = select(models.Event.message).filter_by(type="capacity.corrected")
        assert session.scalars(query).all() == []
        for pool in session.scalars(select(models.Pool)):
            sums = capacity.counted(session, pool.backend_id).get(pool.name, [0, 0, 0, 0])
            kept = [pool.charged_bytes, pool.sold_iops, pool.sold_bw, pool.replicas]
            assert kept == sums
            assert pool.charged_bytes <= pool.total_bytes
            assert pool.sold_iops <= pool.measured_iops == DELIVERED
            assert pool.sold_bw <= pool.measured_bw == DELIVERED
    held = {
        (uid, node.persistent_id)
        for node in fleet.nodes
        for uid in (*node.state.replicas, *node.state.snapshots)
    }
    assert held == {tuple(row) for row in rows}
    assert fleet.exports() == {tuple(row) for row in exports}
    shown = {one.uuid: one for one in client.volumes()}
    assert load.volumes <= shown.keys()
    assert load.snapshots <= {one.snapshot_id for one in client.snapshots()}
    for volume in shown.values():
        nodes = [place.backend.persistent_id for place in volume.location]
        assert len(set(nodes)) == len(nodes) == volume.num_replicas


def assert_no_lease_is_left(database):
    """Only the duties of those who live, as soon as nobody works."""
    deadline = time.monotonic() + 60
    while True:
        with database.read() as session:
            names = session.scalars(select(models.Lease.name)).all()
        held = [name for name in names if not name.startswith(("duty:", "backend:"))]
        if not held:
            return
        assert time.monotonic() < deadline, held
        time.sleep(0.2)


def freeze(instance, seconds):
    """Let an instance stand still, and go on as if nothing had happened."""
    instance.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    instance.process.send_signal(signal.SIGCONT)


def test_random_kills_and_freezes_under_load(instances, fleet, database):
    rng = random.Random(7)
    begun = time.monotonic()
    with Load(instances) as load:
        while (spent := time.monotonic() - begun) < LOAD_SECONDS or (
            (load.codes["Success"] < OPERATIONS or not load.done.keys() >= HARD)
            and spent < MOST_SECONDS
        ):
            time.sleep(rng.uniform(0.5, 1.5))
            victim = rng.choice(instances)
            if rng.random() < 0.35:
                # Longer than it takes to be declared dead.
                freeze(victim, 3.0)
            else:
                victim.kill()
                time.sleep(rng.uniform(0, 1))
                victim.start()
    assert load.defects == []
    settle(instances, fleet, database)
    assert_invariants(instances, fleet, database, load)
    assert_no_lease_is_left(database)
    assert load.codes["Success"] >= OPERATIONS, load.codes
    assert load.done.keys() >= HARD, load.done
    assert load.volumes


def test_a_database_that_restarts(server, instances, fleet, database):
    with Load(instances, threads=4) as load:
        time.sleep(2)
        server.kill()
        time.sleep(2)
        with pytest.raises(errors.KumoError) as caught:
            common.made_volume(instances[0].new_client(budget=1))
        assert caught.value.transient
        server.start()
        before = load.codes["Success"]
        deadline = time.monotonic() + 90
        while load.codes["Success"] < before + 20:
            assert time.monotonic() < deadline, load.codes
            time.sleep(0.1)
    assert load.defects == []
    # The clients repeated what failed; most of them noticed nothing.
    for one in instances:
        assert one.process.poll() is None
    settle(instances, fleet, database)
    assert_invariants(instances, fleet, database, load)
    assert_no_lease_is_left(database)


def test_an_instance_that_stops_leaves_at_once(instances, fleet, database):
    uid = common.made_volume(instances[2].client)
    assert instances[2].stop() == 0
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(models.Instance)) == 2
    instances[1].client.delete_volume(uid)
    assert fleet.objects() == set()


def test_a_schema_that_is_not_there_is_refused(server, tmp_path):
    empty = Database(server.url)
    with empty.engine.begin() as connection:
        models.Base.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    empty.close()
    one = ProvisionerProcess(tmp_path / "kumo", {"database": {"connection": server.url}})
    with pytest.raises(AssertionError, match="ended at start"):
        one.start()
    assert "kumo-provisioner db upgrade" in one.log_text()
    assert server.password not in one.log_text()
