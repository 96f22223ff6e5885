# SPDX-License-Identifier: Apache-2.0
"""Which nodes are looked at when, garbage, and the suspicion that it is the network."""

import uuid

import pytest
from sqlalchemy import select, update

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.node import Limits, ReplicaSpec
from kumo_provisioner import reconcile
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import due, garbage, network, probing, removals, volumes
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, ports, published, rows, shown


def inventories(core):
    """Ports of the nodes that were asked for their inventory since the last call."""
    asked = sorted(port for port, name in core.nodes.calls if name == "inventory")
    core.nodes.calls.clear()
    return asked


def quiet(core):
    """Look at all nodes, and let none be due."""
    reconcile.tick(core)
    core.nodes.calls.clear()
    core.nodes.doubtful.clear()


def strange(model, size=GIB):
    """A replica that a node has and nobody knows; gives its uuid."""
    uid = str(uuid.uuid4())
    model.put_replica(uid, ReplicaSpec(volume_id=str(uuid.uuid4()), bytes=size))
    return uid


def make_old(core, days=8):
    with core.db.write() as session:
        earlier = models.Garbage.first_seen - days * garbage.DAY_MS
        session.execute(update(models.Garbage).values(first_seen=earlier))


# -- due -------------------------------------------------------------------------------------------


def test_a_node_where_nothing_happens_is_looked_at_once(core, three):
    reconcile.tick(core)
    assert len(inventories(core)) == 3
    for _ in range(3):
        probing.probe(core, everyone=True)
        reconcile.tick(core)
    assert inventories(core) == []
    with core.db.read() as session:
        for row in session.scalars(select(models.Backend)):
            assert row.next_reconcile > now_ms() + 500_000 or row.node_generation == 0


def test_a_node_is_looked_at_when_somebody_asks(core, three):
    quiet(core)
    core.wake.clear()
    due.ask(core, [three[1].persistent_id])
    due.ask(core, [])
    assert core.wake.is_set()
    reconcile.tick(core)
    assert inventories(core) == [ports(core, three[1])]


def test_a_node_that_may_have_done_something_is_looked_at(core, three):
    uid = volumes.create(core, T, volume())
    quiet(core)
    place = shown(core, uid).location[0]
    model = next(one for one in three if one.persistent_id == place.backend.persistent_id)
    core.nodes.faults[ports(core, model), "put_export"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        published(core, uid)
    core.nodes.faults.clear()
    assert len(core.nodes.exports()) == 1
    reconcile.tick(core)
    assert core.nodes.exports() == set()
    assert core.nodes.doubtful == set()


def test_doubt_is_kept_while_the_database_is_away(core, three, monkeypatch):
    core.nodes.doubtful.add(three[0].persistent_id)

    def away(_function):
        raise errors.DatabaseUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(core.db, "run", away)
        with pytest.raises(errors.DatabaseUnavailableError):
            reconcile.tick(core)
    assert core.nodes.doubtful == {three[0].persistent_id}


def test_an_ask_during_a_look_is_not_forgotten(core, three, monkeypatch):
    quiet(core)
    whole = removals.carry_out
    backend_id = three[0].persistent_id

    def asked_meanwhile(core_, uuids, **options):
        due.ask(core, [backend_id])
        return whole(core_, uuids, **options)

    due.ask(core, [backend_id])
    with monkeypatch.context() as patch:
        patch.setattr(removals, "carry_out", asked_meanwhile)
        reconcile.tick(core)
    core.nodes.calls.clear()
    reconcile.tick(core)
    assert inventories(core) == [ports(core, three[0])]


def test_a_node_whose_look_failed_is_looked_at_after_the_interval(core, three):
    quiet(core)
    core.nodes.faults[ports(core, three[0]), "inventory"] = "lost request"
    due.ask(core, [three[0].persistent_id])
    reconcile.tick(core)
    with core.db.read() as session:
        row = session.get(models.Backend, three[0].persistent_id)
        assert now_ms() < row.next_reconcile <= now_ms() + 30_000


def test_a_node_that_others_look_at_is_left_to_them(core, three):
    with core.locks.hold(f"backend:{three[0].persistent_id}"):
        assert reconcile.run(core).skipped == 1
    assert ports(core, three[0]) not in inventories(core)


def test_looks_that_nobody_asked_for_take_a_part_of_the_time(core, three):
    reconcile.tick(core)
    with core.db.write() as session:
        session.execute(update(models.Backend).values(next_reconcile=1))
    core.nodes.calls.clear()
    pauses = []

    def stopped(seconds):
        pauses.append(seconds)
        return len(pauses) == 2

    reconcile.tick(core, stopped)
    assert len(inventories(core)) == 2
    assert all(pause > 0 for pause in pauses)


def test_what_is_young_is_not_undone_by_a_tick(core, three):
    uid = volumes.create(core, T, volume())
    for age, left in ((0, 1), (60_000, 0)):
        with core.db.write() as session:
            row = session.get_one(models.Volume, uid)
            row.status, row.created = models.CREATING, now_ms() - age
        reconcile.tick(core)
        assert len(rows(core, models.Volume)) == left
    reconcile.tick(core)
    assert core.nodes.objects() == set()


def test_an_undone_publication_takes_its_exports_along(core, three):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    quiet(core)
    with core.db.write() as session:
        session.execute(update(models.Publication).values(status=models.PUBLISHING, since=0))
    assert reconcile.tick(core).undone == 1
    assert core.nodes.exports() == set()


def test_another_cap_on_the_node_is_set_right(core, three):
    asked = {"max_iops_per_gb": 100, "max_bw_per_gb": 5}
    volumes.create(core, T, volume(gib=2, asked=asked))
    held = [one for model in three for one in model.state.replicas.values()]
    assert [one.limits for one in held] == [Limits(max_iops=200, max_bw=10)]
    held[0].limits = Limits()
    assert reconcile.run(core).limits_set == 1
    assert held[0].limits == Limits(max_iops=200, max_bw=10)


def test_a_wrong_counter_is_corrected(core, three):
    volumes.create(core, T, volume())
    with core.db.write() as session:
        session.execute(update(models.Pool).values(charged_bytes=7))
    reconcile.run(core)
    wanted = sorted([0, 0, *(row.reserved_bytes for row in rows(core, models.Replica))])
    assert sorted(row.charged_bytes for row in rows(core, models.Pool)) == wanted
    found = [one for one in rows(core, models.Event) if one.type == "capacity.corrected"]
    assert len(found) == 3


# -- garbage ---------------------------------------------------------------------------------------


def test_garbage_is_told_and_removed_after_its_grace(core, three):
    uid = strange(three[0])
    for _ in range(2):
        assert reconcile.run(core).unknown == 1
    (found,) = garbage.list_all(core)
    assert (found.uuid, found.kind, found.bytes) == (uid, models.REPLICA, GIB)
    assert found.removal == found.first_seen + 7 * garbage.DAY_MS
    told = [one.type for one in rows(core, models.Event)]
    assert told.count("garbage.found") == 1
    make_old(core)
    assert reconcile.run(core).removed == 1
    assert core.nodes.objects() == set()
    assert garbage.list_all(core) == []
    assert "garbage.removed" in [one.type for one in rows(core, models.Event)]


def test_garbage_that_went_by_itself_is_forgotten(core, three):
    uid = strange(three[0])
    reconcile.run(core)
    three[0].delete_replica(uid)
    reconcile.run(core)
    assert garbage.list_all(core) == []


def test_garbage_that_was_kept_or_has_no_end_stays(core, three):
    uid = strange(three[0])
    reconcile.run(core)
    garbage.keep(core, three[0].persistent_id, uid)
    make_old(core)
    reconcile.run(core)
    assert [one.removal for one in garbage.list_all(core)] == [0]
    assert [one.kept for one in garbage.list_all(core)] == [True]
    other = strange(three[1])
    reconcile.run(core)
    make_old(core)
    core.conf.set_override("garbage_grace_days", 0, group="reconcile")
    reconcile.run(core)
    assert core.nodes.objects() == {uid, other}


def test_much_garbage_is_a_record_that_forgot(core, three):
    strangers = {strange(three[0]) for _ in range(5)}
    reconcile.run(core)
    make_old(core)
    reconcile.run(core)
    assert core.nodes.objects() == strangers


def test_what_the_record_has_on_another_node_is_not_touched(core, three):
    uid = volumes.create(core, T, volume())
    place = shown(core, uid).location[0]
    home = next(one for one in three if one.persistent_id == place.backend.persistent_id)
    other = next(one for one in three if one is not home)
    other.state.replicas[place.uuid] = home.state.replicas[place.uuid]
    assert reconcile.run(core).unknown == 0
    assert garbage.list_all(core) == []
    assert place.uuid in other.state.replicas


def test_garbage_over_the_wire(web, core, three):
    uid, other = strange(three[0]), strange(three[1])
    reconcile.run(core)
    path = f"/garbage/{three[0].persistent_id}/{uid}"
    assert {one["uuid"] for one in web.get("/garbage").json()} == {uid, other}
    assert web.post(f"{path}/keep").json()["status"] == "Success"
    assert {one["uuid"]: one["kept"] for one in web.get("/garbage").json()}[uid] is True
    assert web.delete(path).json()["status"] == "Success"
    assert core.nodes.objects() == {other}
    assert web.delete(path).status_code == 404
    assert web.post(f"{path}/keep").status_code == 404
    web.headers["Authorization"] = "Bearer storage-token"
    assert web.delete(f"/garbage/{three[1].persistent_id}/{other}").status_code == 403


def test_garbage_on_a_dead_node_is_removed_when_it_is_back(core, three):
    uid = strange(three[0])
    reconcile.run(core)
    core.nodes.down.add(ports(core, three[0]))
    garbage.remove(core, three[0].persistent_id, uid)
    assert core.nodes.objects() == {uid}
    core.nodes.down.clear()
    reconcile.run(core)
    assert core.nodes.objects() == set()


# -- network ---------------------------------------------------------------------------------------


def test_a_third_of_the_nodes_away_is_the_network(core):
    models_ = [add_node(core) for _ in range(6)]
    uid = volumes.create(core, T, volume())
    place = shown(core, uid).location[0]
    home = next(one for one in models_ if one.persistent_id == place.backend.persistent_id)
    others = [one for one in models_ if one is not home]
    stranger = strange(home)
    reconcile.run(core)
    make_old(core)
    network.watch(core)
    core.nodes.down |= {ports(core, one) for one in others[:2]}
    for _ in range(2):
        probing.probe(core, everyone=True)
    kept = home.state.replicas.pop(place.uuid)
    for _ in range(2):
        network.watch(core)
    reconcile.run(core)
    assert shown(core, uid).location[0].replica_state == "Available"
    assert core.nodes.objects() == {stranger}
    core.nodes.down.clear()
    probing.probe(core, everyone=True)
    network.watch(core)
    told = [one.type for one in rows(core, models.Event) if one.type.startswith("network.")]
    assert told == ["network.suspected", "network.restored"]
    reconcile.run(core)
    assert shown(core, uid).location[0].replica_state == "Missing"
    assert core.nodes.objects() == set()
    home.state.replicas[place.uuid] = kept
    reconcile.run(core)
    assert shown(core, uid).location[0].replica_state == "Available"
