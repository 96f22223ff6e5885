# SPDX-License-Identifier: Apache-2.0
"""A record of the first release, brought up to date: nothing is lost, counters are right."""

import alembic.command
import pytest
import sqlalchemy
from sqlalchemy import update

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.host import HostProbe, UnpublishRequest
from kumo_client.schemas.node import Limits
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.volume import StorageClassUpdate, VolumeModify
from kumo_provisioner import reconcile
from kumo_provisioner.core import Core
from kumo_provisioner.db import models, schema
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.services import (
    backends,
    classes,
    probing,
    publish,
    snapshots,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, down, made_snapshot, published, rows, shown
from tests.unit.provisioner.test_capacity import agree

FIRST = "0001"
# A host of that time tells of no abilities.
HOST = HostProbe(host_nqn="nqn.2014-08.org.nvmexpress:uuid:old", host_id="old", name="old")


def first_schema(path):
    """An empty record of the first release."""
    database = Database(f"sqlite:///{path}")
    config = schema._config()
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, FIRST)
        connection.commit()
    return database


def copy(source, target):
    """All rows of all tables that the first release had, without what it did not know."""
    old = sqlalchemy.MetaData()
    old.reflect(target.engine)
    with source.engine.connect() as read, target.engine.begin() as write:
        for table in old.sorted_tables:
            if table.name == "alembic_version":
                continue
            found = read.execute(sqlalchemy.select(*table.c)).all()
            if found:
                write.execute(table.insert(), [dict(one._mapping) for one in found])


@pytest.fixture
def upgraded(core, conf, tmp_path):
    """Gives a function that starts this release on the record of the first one."""
    made = []

    def restart():
        path = tmp_path / "old.db"
        target = first_schema(path)
        copy(core.db, target)
        with pytest.raises(errors.ConfigError, match=f"is {FIRST} and must be"):
            target.check_schema()
        target.upgrade()
        target.check_schema()
        target.close()
        made.append(Core(conf, Database(f"sqlite:///{path}"), core.nodes, Locks(0)))
        return made[-1]

    yield restart
    for one in made:
        one.close()


def settle(core):
    probing.probe(core, everyone=True)
    counts = [reconcile.run(core) for _ in range(2)][-1]
    assert (counts.waiting, counts.unknown) == (0, 0)


def wire(items):
    """As callers see it, without how long it has been so."""
    told = [item.wire() for item in items]
    for one in told:
        for place in one.get("location", []):
            place.pop("currentStateTime")
    return told


def test_nothing_is_lost_and_counters_are_sums(core, three, upgraded):
    plain = volumes.create(core, T, volume("plain", gib=3))
    array = volumes.create(core, T, volume("array", gib=2, replicas=3))
    thin = volumes.create(core, T, volume("thin", gib=8, provisioning_type="THIN"))
    made_snapshot(core, plain)
    published(core, array, HOST)
    gone = volumes.create(core, T, volume("gone", gib=5))
    down(core, three[0])
    volumes.delete(core, T, gone)
    before = [(one.charged_bytes, one.replicas) for one in rows(core, models.Pool)]
    shown_before = wire(volumes.list_all(core, T))
    held = core.nodes.objects(), core.nodes.exports()
    again = upgraded()
    assert wire(volumes.list_all(again, T)) == shown_before
    assert wire(tenants.list_all(again)) == wire(tenants.list_all(core))
    assert [(one.charged_bytes, one.replicas) for one in rows(again, models.Pool)] == before
    core.nodes.down.clear()
    settle(again)
    assert agree(again)
    assert {one.uuid for one in volumes.list_all(again, T)} == {plain, array, thin}
    parts = {one.uuid for one in rows(again, models.SnapshotPart)}
    kept = {one.uuid for one in rows(again, models.Replica)} | parts
    assert core.nodes.objects() == held[0] & kept == kept
    assert core.nodes.exports() == held[1]
    assert rows(again, models.Garbage) == []


def test_its_volumes_are_used_like_others(core, three, upgraded):
    array = volumes.create(core, T, volume("array", gib=2, replicas=2))
    plain = volumes.create(core, T, volume("plain", gib=1))
    snapshot = made_snapshot(core, plain)
    published(core, array, HOST)
    again = upgraded()
    settle(again)
    volumes.extend(again, T, plain, 4)
    request = SnapshotVolumeCreate(alias="copy", snapshot_id=snapshot)
    copied = snapshots.create_volume(again, T, request)
    assert shown(again, copied).capacity == 1
    # Nobody has told yet what its array is.
    assert published(again, array, HOST).array_state == "new"
    publish.unpublish(again, T, UnpublishRequest(vol_id=array, host_id="old"))
    snapshots.delete(again, T, snapshot)
    for uid in (array, plain, copied):
        volumes.delete(again, T, uid)
    settle(again)
    assert core.nodes.objects() == set()
    assert all(one.charged_bytes == one.replicas == 0 for one in rows(again, models.Pool))
    for one in backends.list_all(again):
        backends.delete(again, one.persistent_id)
    assert rows(again, models.Pool) == []


def test_caps_take_effect_and_guarantees_when_they_are_set(core, upgraded):
    node = add_node(core, max_iops=1000, max_bw=1000)
    asked = {"max_iops_per_gb": 100, "desired_iops_per_gb": 50}
    uid = volumes.create(core, T, volume(gib=2, asked=asked))
    (held,) = node.state.replicas.values()
    held.limits = Limits()
    again = upgraded()
    settle(again)
    assert held.limits.max_iops == 200
    assert [one.sold_iops for one in rows(again, models.Replica)] == [0]
    request = VolumeModify(storage_class=StorageClassUpdate(desired_iops_per_gb=60))
    classes.modify(again, T, uid, request)
    assert [one.sold_iops for one in rows(again, models.Replica)] == [120]
    assert agree(again)


def test_a_record_that_is_not_whole_is_left_as_it_is(core, three, tmp_path):
    uid = volumes.create(core, T, volume())
    database = first_schema(tmp_path / "old.db")
    copy(core.db, database)
    raw = database.engine.raw_connection()
    raw.cursor().execute("PRAGMA foreign_keys = OFF")
    raw.cursor().execute(f"DELETE FROM volumes WHERE uuid = '{uid}'")
    raw.cursor().execute("PRAGMA foreign_keys = ON")
    raw.close()
    with pytest.raises(errors.ConfigError, match="of replicas, which refers to volumes") as caught:
        database.upgrade()
    assert "nothing was changed" in caught.value.way_out
    with database.engine.connect() as connection:
        assert schema.current(connection) == FIRST
        assert "pools" not in sqlalchemy.inspect(connection).get_table_names()
        assert connection.exec_driver_sql("SELECT count(*) FROM replicas").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()


def test_an_upgrade_that_is_cut_off_changes_nothing(core, three, tmp_path, monkeypatch):
    volumes.create(core, T, volume())
    database = first_schema(tmp_path / "old.db")
    copy(core.db, database)

    def die(*_):
        raise KeyboardInterrupt

    # The last thing before the commit.
    monkeypatch.setattr(schema, "_check_references", die)
    with pytest.raises(KeyboardInterrupt):
        database.upgrade()
    monkeypatch.undo()
    with database.engine.connect() as connection:
        assert schema.current(connection) == FIRST
        assert "pools" not in sqlalchemy.inspect(connection).get_table_names()
    database.upgrade()
    database.check_schema()
    database.close()


def test_what_was_cut_off_is_finished(core, upgraded):
    node = add_node(core, total_bytes=20 * GIB)
    uid = volumes.create(core, T, volume(gib=2))
    half = volumes.create(core, T, volume("half", gib=3))
    with core.db.write() as session:
        session.execute(update(models.Volume).filter_by(uuid=uid).values(wanted_capacity=6))
        session.execute(update(models.Volume).filter_by(uuid=half).values(status=models.CREATING))
    again = upgraded()
    assert shown(again, uid).unsettled == "extend"
    settle(again)
    assert (shown(again, uid).capacity, shown(again, uid).unsettled) == (6, "")
    assert [one.uuid for one in volumes.list_all(again, T)] == [uid]
    assert {held.bytes for held in node.state.replicas.values()} == {6 * GIB}
    assert agree(again)
