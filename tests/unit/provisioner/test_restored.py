# SPDX-License-Identifier: Apache-2.0
"""An old copy of the database is put back: nothing is taken away until an operator has said so."""

import pytest
from sqlalchemy import select

from kumo_client import errors
from kumo_client.schemas.garbage import Garbage
from kumo_client.schemas.host import HostProbe, UnpublishRequest
from kumo_client.schemas.node import ExportSpec, Heartbeat, ReplicaSpec
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import CloneCreate, Revert
from kumo_provisioner import health, reconcile, settling, stamps
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.metrics.record import Record
from kumo_provisioner.nodes import Nodes
from kumo_provisioner.reconcile.accept import accept
from kumo_provisioner.reconcile.differences import look
from kumo_provisioner.services import (
    adoption,
    drain,
    garbage,
    hosts,
    migration,
    probing,
    publish,
    replicas,
    restored,
    revert,
    snapshots,
    volumes,
)
from tests.unit.provisioner.conftest import NQN, FakeNodes, add_node
from tests.unit.provisioner.restoring import (
    DROP,
    KEEP,
    a_site,
    actions,
    away,
    doubt,
    events_of,
    made,
)
from tests.unit.provisioner.stories import T, detach, home, legs_of, ports, published, rows, shown


@pytest.fixture
def site(tmp_path, conf, empty_database):
    with a_site(tmp_path, empty_database, conf) as made:
        yield made


# -- all is well ----------------------------------------------------------------------------------


def test_a_restart_is_no_doubt(site):
    uid = made(site.core, replicas=2)
    for _ in range(3):
        core = site.start()
        published(core, uid)
        assert not reconcile.run(core).waiting
        detach(core, uid)
    volumes.delete(core, T, uid)
    assert (doubt(core), site.state()) == ("", (set(), set()))
    assert health.remark(core) == ""
    with pytest.raises(errors.ConflictError, match="not in doubt"):
        accept(core, DROP)


def test_a_copy_that_nothing_has_happened_since_is_no_doubt(site):
    uid = made(site.core)
    site.copy()
    core = site.put_back()
    reconcile.run(core)
    volumes.delete(core, T, uid)
    assert (doubt(core), site.state()) == ("", (set(), set()))


def test_nodes_of_the_first_release_remember_nothing(site, monkeypatch):
    monkeypatch.setattr("tests.fakes.node_stamp.Remembering.hear", lambda *_a, **_o: None)
    uid = made(site.core)
    published(site.core, uid)
    core = site.start()
    reconcile.run(core)
    detach(core, uid)
    volumes.delete(core, T, uid)
    assert (doubt(core), site.state()) == ("", (set(), set()))


def test_a_node_that_was_away_for_many_starts_is_told(site):
    first = next(iter(site.nodes.models.values()))
    uid = made(site.core, replicas=3)
    site.nodes.down.add(ports(site.core, first))
    for _ in range(12):
        core = site.start()
        probing.probe(core, everyone=True)
    site.nodes.down.clear()
    probing.probe(core, everyone=True)
    assert first.memory.plain == core.stamps.known.line.now
    volumes.delete(core, T, uid)
    assert (doubt(core), site.nodes.objects()) == ("", set())


# -- an old copy ----------------------------------------------------------------------------------


@pytest.fixture
def older(site):
    """A copy is put back. Since it was made ``attached`` was published, ``new`` was made and
    published, ``gone`` was deleted, and ``left`` was detached."""
    core = site.core
    site.attached, site.gone = made(core, "attached"), made(core, "gone")
    site.left = made(core, "left", replicas=2)
    published(core, site.left)
    site.copy()
    core = site.start()
    published(core, site.attached)
    volumes.delete(core, T, site.gone)
    detach(core, site.left)
    site.new = made(core, "new")
    published(core, site.new)
    site.before = site.state()
    site.put_back()
    return site


def test_nothing_is_taken_away(older):
    core = older.core
    for _ in range(2):
        counts = reconcile.run(core)
        reconcile.tick(core)
    assert (counts.exports_removed, counts.removed, counts.exports_restored) == (0, 0, 0)
    assert counts.waiting
    assert older.state() == older.before
    # Nodes were not even asked.
    assert {one.refused for one in older.nodes.models.values()} == {0}
    assert doubt(core) == stamps.OLDER
    (event,) = events_of(core, "database.doubted")
    assert (event.level, event.details) == ("FATAL", {"doubt": "older"})
    assert "does not come from there: the database is an old copy" in health.remark(core)
    assert b"\nkumo_database_doubted 1\n" in Record(core).text()
    # Nobody is told that a leg is missing because of an old record.
    assert not any(one.absent for one in rows(core, models.Replica))


def test_it_stays_in_doubt_over_restarts(older):
    reconcile.run(older.core)
    core = older.start()
    assert doubt(core) == stamps.OLDER
    reconcile.run(core)
    assert older.state() == older.before
    assert len(events_of(core, "database.doubted")) == 1


def test_the_look_lists_what_acceptance_does(older):
    core = older.core
    reconcile.run(core)
    found = look(core).shown
    assert actions(core) == [
        ("export", "replica"),
        ("export", "replica"),
        ("missing", "replica"),
        ("unexport", "replica"),
        ("unknown", "replica"),
    ]
    by_action = {one.action: one for one in found.differences}
    taken = by_action["unexport"]
    assert (taken.volume_id, taken.alias, taken.host_nqn) == (older.attached, "attached", NQN)
    unknown = by_action["unknown"]
    assert (unknown.volume_id, unknown.alias, unknown.host_nqn) == (older.new, "", NQN)
    assert unknown.bytes == 1 << 30
    assert {one.judgement for one in found.backends} <= {"older", "fine"}
    assert [one.volume_id for one in found.uncertain] == [older.left]
    assert older.state() == older.before


def test_accepted_with_exports_kept(older):
    core = older.core
    reconcile.run(core)
    answer = accept(core, KEEP)
    assert (answer.exports_kept, answer.left) == (1, [])
    assert doubt(core) == ""
    reconcile.run(core)
    assert shown(core, older.attached).published_hosts == ["host-1"]
    # What is unknown is garbage: listed, and left alone for now.
    (found,) = [one for one in garbage.list_all(core) if isinstance(one, Garbage)]
    assert found.uuid in site_objects(older, older.new)
    assert older.before[1] <= older.state()[1]
    assert older.before[0] == older.state()[0]
    (event,) = events_of(core, "database.accepted")
    assert event.details == {"exportsKept": 1, "left": []}
    detach(core, older.attached)
    volumes.delete(core, T, older.attached)
    assert not site_objects(older, older.attached)
    assert {one.memory.branch for one in older.nodes.models.values()} == {
        core.stamps.known.line.now.branch
    }


def site_objects(site, uid):
    """Replicas of a volume on the nodes."""
    return {
        uuid
        for model in site.nodes.models.values()
        for uuid, one in model.state.replicas.items()
        if one.spec.volume_id == uid
    }


def test_accepted_with_exports_dropped(older):
    core = older.core
    (leg,) = site_objects(older, older.attached)
    reconcile.run(core)
    assert accept(core, DROP).exports_kept == 0
    reconcile.run(core)
    assert (leg, NQN) in older.before[1] - older.state()[1]
    assert older.before[0] == older.state()[0]
    gone = shown(core, older.gone)
    assert [one.replica_state for one in gone.location] == ["Missing"]
    volumes.delete(core, T, older.gone)
    reconcile.run(core)
    assert garbage.list_all(core)[0].uuid in older.state()[0]


def test_a_host_made_since_has_to_be_known_to_keep_its_exports(older):
    core = older.core
    late = HostProbe(host_nqn="nqn.2014-08.org.nvmexpress:uuid:late", host_id="late")
    (leg,) = site_objects(older, older.attached)
    home(core, older.attached).put_export(leg, ExportSpec(host_nqn=late.host_nqn))
    reconcile.run(core)
    with pytest.raises(errors.ConflictError, match="uuid:late") as caught:
        accept(core, KEEP)
    assert caught.value.details == {"hostNqns": [late.host_nqn]}
    assert (doubt(core), older.state()[0]) == (stamps.OLDER, older.before[0])
    hosts.probe(core, late)
    assert accept(core, KEEP).exports_kept == 2
    assert set(shown(core, older.attached).published_hosts) == {"host-1", "late"}


def test_garbage_that_a_host_has_is_never_removed_by_itself(older):
    core = older.core
    reconcile.run(core)
    accept(core, KEEP)
    reconcile.run(core)
    (found,) = garbage.list_all(core)
    with core.db.write() as session:
        session.get_one(models.Garbage, (found.backend_id, found.uuid)).first_seen = 1
    reconcile.run(core)
    assert found.uuid in older.state()[0]
    node = next(one for one in older.nodes.models.values() if one.persistent_id == found.backend_id)
    node.delete_export(found.uuid, None)
    reconcile.run(core)
    assert found.uuid not in older.state()[0]


REFUSED = {
    "volume": lambda core, site: volumes.delete(core, T, site.attached),
    "snapshot": lambda core, site: snapshots.delete(core, T, site.attached),
    "leg": lambda core, site: replicas.terminate(core, T, site.left, "x"),
    "confirmed leg": lambda core, site: replicas.confirm(core, T, site.left, "x"),
    "revert": lambda core, site: revert.revert(
        core, T, Revert(volume_id=site.attached, snapshot_id=site.left)
    ),
    "unmanage": lambda core, site: adoption.unmanage(core, T, site.attached),
    "garbage": lambda core, site: garbage.remove(core, "n", site.attached),
    "capture": lambda core, site: snapshots.create(
        core, T, SnapshotCreate(alias="s", volume_id=site.left)
    ),
    "clone": lambda core, site: snapshots.clone(
        core, T, CloneCreate(alias="c", source_volume_id=site.left)
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_gives_something_up_is_refused_also_right_after_the_start(older, what):
    core = older.core
    with pytest.raises(errors.OutdatedRecordError, match="old copy") as caught:
        REFUSED[what](core, older)
    assert caught.value.transient
    assert "kumo restored" in caught.value.way_out
    assert older.state() == older.before


def test_creates_and_publishes_work_and_detaches_are_left_for_later(older):
    core = older.core
    reconcile.run(core)
    plain, mirrored = made(core, "plain"), made(core, "mirrored", replicas=2)
    assert published(core, mirrored).array_state == "new"
    published(core, plain)
    snapshots.create(core, T, SnapshotCreate(alias="s", volume_id=plain))
    publish.unpublish(core, T, UnpublishRequest(vol_id=plain))
    # Not refused, but the node does not obey an older record.
    assert len(older.state()[1] - older.before[1]) == 3
    accept(core, KEEP)
    assert [one.host_id for one in rows(core, models.Publication) if one.volume_id == plain] == [
        "host-1"
    ]


def test_whether_an_array_was_written_to_is_not_believed(older):
    """The copy has it as new: a host that believed that would make a new array over the data."""
    core = older.core
    reconcile.run(core)
    assert shown(core, older.left).array_state == "new"
    assert published(core, older.left).array_state == "open"
    assert accept(core, KEEP).arrays == 1
    assert shown(core, older.left).array_state == "open"


def test_what_was_under_way_is_not_finished_again(site, monkeypatch):
    core = site.core
    uid = made(core, "v")
    snapshot = snapshots.create(core, T, SnapshotCreate(alias="s", volume_id=uid))
    with core.db.write() as session:
        row = session.get_one(models.Volume, uid)
        revert.Wish(snapshot, snapshot).write(row)
    site.copy()
    core = site.start()
    reconcile.run(core)
    assert rows(core, models.Volume)[0].unsettled == ""
    home(core, uid).write(legs_of(core, uid)[0], "written since")
    core = site.put_back()
    reconcile.run(core)
    reconcile.tick(core)
    drain.run(core)
    migration.run(core)
    assert site.core.stamps.doubted
    assert home(core, uid).state.replicas[legs_of(core, uid)[0]].content == "written since"
    assert [(one.action, one.detail) for one in look(core).shown.differences] == [
        ("finish", settling.REVERT)
    ]


@pytest.mark.parametrize("answer", [KEEP, DROP])
def test_what_was_being_made_is_listed_and_undone_only_after_acceptance(site, answer):
    core = site.core
    uid, new = made(core, "v"), made(core, "new")
    snapshot = snapshots.create(core, T, SnapshotCreate(alias="s", volume_id=uid))
    published(core, uid)
    with core.db.write() as session:
        session.get_one(models.Volume, new).status = models.CREATING
        session.get_one(models.Snapshot, snapshot).status = models.CREATING
        session.get_one(models.Publication, (uid, "host-1")).status = models.PUBLISHING
    site.copy()
    with core.db.write() as session:
        session.get_one(models.Volume, new).status = models.AVAILABLE
    core = site.start()
    probing.probe(core, everyone=True)
    core = site.put_back()
    before = site.state()
    reconcile.run(core)
    assert site.state() == before
    undone = [one.kind for one in look(core).shown.differences if one.action == "undo"]
    assert undone == ["volume", "snapshot", "publication"]
    accept(core, answer)
    reconcile.run(core)
    kept = answer is KEEP
    assert bool(site_objects(site, new)) is kept
    assert bool(site.state()[1]) is kept
    assert {one.status for one in rows(core, models.Publication)} <= {models.PUBLISHED}


# -- nodes that are away, other databases ---------------------------------------------------------


def test_a_node_that_was_away_at_acceptance_is_looked_at_when_it_is_back(older):
    core = older.core
    node = home(core, older.attached)
    reconcile.run(core)
    older.nodes.down.add(ports(core, node))
    answer = accept(core, DROP)
    assert answer.left == [node.persistent_id]
    assert doubt(core) == ""
    (leg,) = site_objects(older, older.attached)
    mirrored = made(core, "mirrored", replicas=2)
    older.nodes.down.clear()
    reconcile.run(core)
    assert doubt(core) == stamps.LEFT
    assert (leg, NQN) in older.state()[1]
    # Arrays made meanwhile are believed.
    assert accept(core, KEEP).arrays == 0
    assert shown(core, mirrored).array_state == "new"
    assert shown(core, older.attached).published_hosts == ["host-1"]
    assert doubt(core) == ""
    assert core.stamps.known.away == frozenset()


def test_a_node_of_another_provisioner(site):
    core = site.core
    uid = made(core, "mirrored", replicas=2)
    other = add_node(core)
    other.put_replica(uid, ReplicaSpec(volume_id=uid, bytes=1 << 30))
    other.memory = other.memory.model_copy(update={"database": uid})
    reconcile.run(core)
    assert doubt(core) == stamps.OTHER
    assert uid in other.state.replicas
    assert accept(core, DROP).arrays == 0
    assert other.memory.database == core.stamps.known.line.now.database
    assert shown(core, uid).array_state == "new"
    assert doubt(core) == ""


def test_a_database_without_an_identity_is_another_one(site):
    core = site.core
    uid = made(core)
    with core.db.write() as session:
        session.delete(stamps.row(session))
    core = site.start()
    with pytest.raises(errors.OutdatedRecordError, match="not known here"):
        volumes.delete(core, T, uid)
    assert doubt(core) == stamps.OTHER


def test_what_weighs_more_is_recorded(older):
    core = older.core
    restored.enter(core, stamps.OTHER, "other")
    reconcile.run(core)
    known = core.stamps.load()
    assert known.doubt == stamps.OLDER
    restored.enter(core, stamps.OTHER, "another one")
    assert core.stamps.load() == known
    core.db.run(lambda session: restored.doubted(session, stamps.OTHER, "another one"))
    assert core.stamps.load() == known


def test_a_heartbeat_tells_it(older):
    core = older.core
    node = home(core, older.attached)
    assert doubt(core) == ""
    probing.heartbeat(core, Heartbeat(**dict(node.info())))
    assert doubt(core) == stamps.OLDER


def test_a_node_that_could_not_be_told_refuses_by_itself(older):
    core = older.core
    reconcile.run(core)
    node = home(core, older.attached)
    older.nodes.faults[ports(core, node), "put_stamp"] = errors.InternalError("no room")
    assert accept(core, DROP).left == [node.persistent_id]
    (leg,) = site_objects(older, older.attached)
    assert doubt(core) == ""
    with core.db.read() as session:
        address = restored.Address.of(session.get_one(models.Backend, node.persistent_id))
    outcome = core.nodes.call((address, lambda one: one.delete_replica(leg)))
    assert outcome.error.code == "OutdatedRecord"
    reconcile.run(core)
    assert (doubt(core), (leg, NQN) in older.state()[1]) == (stamps.LEFT, True)


def test_another_node_at_the_address_is_not_heard(older):
    core = older.core
    first, *others = older.nodes.models
    for port in others:
        older.nodes.models[port] = older.nodes.models[first]
    older.nodes.down.add(first)
    assert {one.judgement for one in look(core).shown.backends} == {"silent"}


# -- the database is replaced while the provisioner runs; several instances ------------------------


def test_the_number_rises_only_when_nodes_were_asked_to_change(site):
    core = site.core
    number = core.stamps.load().line.now.number
    restored.advance(core)
    reconcile.run(core)
    restored.advance(core)
    assert core.stamps.load().line.now.number == number
    made(core)
    restored.advance(core)
    restored.advance(core)
    assert core.stamps.load().line.now.number == number + 1


def test_it_is_raised_later_when_the_database_is_away(site, monkeypatch):
    core = site.core
    made(core)
    with monkeypatch.context() as patch:
        patch.setattr(core.db, "run", away)
        with pytest.raises(errors.DatabaseUnavailableError):
            restored.advance(core)
    number = core.stamps.load().line.now.number
    restored.advance(core)
    assert core.stamps.load().line.now.number == number + 1


def test_a_database_replaced_under_our_feet(site):
    core = site.core
    made(core)
    restored.advance(core)
    with core.db.write() as session:
        stamps.row(session).number -= 1
    restored.advance(core)
    assert doubt(core) == stamps.OLDER
    assert "it was replaced" in health.remark(core)


def test_an_instance_that_is_behind_another_one_asks_again(site, monkeypatch):
    """The other one has raised the number and told the node."""
    core = site.core
    uid = made(core)
    other = Core(site.conf, Database(f"sqlite:///{site.path}"), FakeNodes(), Locks(0))
    other.nodes.models = site.nodes.models
    other.stamps.start()
    probing.probe(other, everyone=True)
    site.nodes.stamps = core.stamps
    node, (leg,) = home(core, uid), legs_of(core, uid)
    calls = []

    def delete(one):
        calls.append(one)
        told = core.nodes.told("delete_replica")
        node.hear(told, taking=True)
        return node.delete_replica(leg)

    real = Nodes.__new__(Nodes)
    real.stamps = core.stamps
    real._called(delete, node)
    assert (len(calls), node.refused, site.nodes.objects()) == (2, 1, set())
    node.memory = node.memory.model_copy(update={"number": 99})
    with pytest.raises(errors.OutdatedRecordError):
        real._called(delete, node)
    real.stamps = None
    with pytest.raises(errors.OutdatedRecordError):
        real._called(delete, node)
    assert len(calls) == 4
    other.close()


# -- over the wire --------------------------------------------------------------------------------


def test_the_routes(core, web):
    core.stamps.start()
    assert web.get("/restored").json()["doubt"] == ""
    assert web.get("/readyz").json()["description"] == ""
    restored.enter(core, stamps.OLDER, "an old copy")
    found = web.get("/restored").json()
    assert (found["doubt"], found["reason"], len(found["backends"])) == ("older", "an old copy", 3)
    ready = web.get("/readyz")
    assert (ready.status_code, "an old copy" in ready.json()["description"]) == (200, True)
    assert web.post("/restored/accept", json={"exports": "some"}).status_code == 400
    answer = web.post("/restored/accept", json={"exports": "keep"}).json()
    assert (answer["status"], answer["exportsKept"], answer["left"]) == ("Success", 0, [])
    assert web.get("/restored").json()["doubt"] == ""
    assert web.post("/restored/accept", json={"exports": "keep"}).status_code == 409
    with core.db.read() as session:
        assert session.scalars(select(models.Identity)).one().doubt == ""
