# SPDX-License-Identifier: Apache-2.0
"""Counters of what is promised: they agree with the rows, and nothing is sold twice."""

import dataclasses
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import event, select, update

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.backend import BackendUpdate
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner import placement, reconcile
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.placement import Ask, Rules
from kumo_provisioner.recent import Recent
from kumo_provisioner.services import (
    backends,
    capacity,
    info,
    placing,
    shortlist,
    snapshots,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, rows, shown
from tests.unit.provisioner.test_placement import ASKS, RULES, fleets


def agree(core):
    """Whether no counter differs from what the rows add up to."""
    with core.db.write() as session:
        ids = session.scalars(select(models.Backend.persistent_id)).all()
        return not any([capacity.recount(session, one) for one in ids])


def pool_of(core, model, name="pool"):
    with core.db.read() as session:
        return session.get_one(models.Pool, (model.persistent_id, name))


GUARANTEE = {"desired_iops_per_gb": 100, "desired_bw_per_gb": 10}


def fast(core, count=1, **options):
    made = [add_node(core, max_iops=1000, max_bw=1000, **options) for _ in range(count)]
    return made if count > 1 else made[0]


def test_counters_follow_a_life(core):
    fast(core, 3)
    uid = volumes.create(core, T, volume(gib=2, replicas=3, asked=GUARANTEE))
    assert agree(core)
    for model in core.nodes.models.values():
        pool = pool_of(core, model)
        assert (pool.sold_iops, pool.sold_bw, pool.replicas) == (200, 20, 1)
    shot = made_snapshot(core, uid)
    volumes.extend(core, T, uid, 3)
    assert agree(core)
    assert {one.sold_iops for one in rows(core, models.Pool)} == {300}
    snapshots.delete(core, T, shot)
    core.nodes.down.add(1000)
    volumes.delete(core, T, uid)
    assert agree(core)
    charged = [one.charged_bytes for one in rows(core, models.Pool)]
    assert sorted(charged)[:2] == [0, 0], "what has gone is free"
    assert max(charged) > 0, "what a node still holds is not"
    assert {one.sold_iops for one in rows(core, models.Pool)} == {0}, "nobody needs it any more"
    core.nodes.down.clear()
    reconcile.run(core)
    assert agree(core)
    assert {one.charged_bytes for one in rows(core, models.Pool)} == {0}
    assert {one.sold_iops for one in rows(core, models.Backend)} == {0}


def test_guarantees_are_sold_once(core):
    model = fast(core)
    for number in range(10):
        volumes.create(core, T, volume(f"v{number}", asked=GUARANTEE))
    with pytest.raises(errors.NoSpaceError) as caught:
        volumes.create(core, T, volume("more", asked=GUARANTEE))
    assert caught.value.details["refusals"][0]["refusedBy"] == "guarantee"
    volumes.create(core, T, volume("without"))
    with pytest.raises(errors.NoSpaceError, match="guarantee: 100 IOPS"):
        volumes.extend(core, T, volumes.by_alias(core, T, "v0")[0].uuid, 2)
    shot = made_snapshot(core, volumes.by_alias(core, T, "v0")[0].uuid)
    assert agree(core)
    assert shot
    assert pool_of(core, model).sold_iops == 1000


def test_what_a_node_delivers_bounds_its_pools_together(core):
    model = fast(core, pools={"a": 10 * GIB, "b": 10 * GIB})
    backends.update(core, model.persistent_id, BackendUpdate(max_iops=1200))
    for number in range(12):
        volumes.create(core, T, volume(f"v{number}", asked={"desired_iops_per_gb": 100}))
    with pytest.raises(errors.NoSpaceError, match="and 0 of 1200 are left"):
        volumes.create(core, T, volume("more", asked={"desired_iops_per_gb": 100}))
    assert agree(core)


def test_without_a_known_pool_nothing_is_guaranteed(core, three):
    with pytest.raises(errors.NoSpaceError, match="nobody declared what the pool delivers"):
        volumes.create(core, T, volume(asked=GUARANTEE))


def test_the_node_is_told_pool_and_caps(core):
    model = add_node(core, pools={"small": 5 * GIB, "large": 50 * GIB})
    asked = {"max_iops_per_gb": 50, "max_bw_per_gb": 7}
    uid = volumes.create(core, T, volume(gib=4, asked=asked))
    place = shown(core, uid).location[0]
    spec = node_of(core, place).state.replicas[place.uuid].spec
    assert (spec.pool, spec.limits.max_iops, spec.limits.max_bw) == ("large", 200, 28)
    volumes.create(core, T, volume("plain", gib=1))
    specs = [one.spec for one in model.state.replicas.values()]
    assert None in [spec.limits for spec in specs]


def test_caps_too_large_for_the_wire_are_the_largest_there_is():
    asked = StorageClass(max_iops_per_gb=1 << 31, max_bw_per_gb=1)
    assert capacity.limits(asked, 1 << 20).max_iops == capacity.CAP_MAX


def test_a_wrong_counter_is_corrected_and_told(core, three):
    volumes.create(core, T, volume(replicas=3))
    one = three[0].persistent_id
    with core.db.write() as session:
        session.execute(update(models.Pool).values(charged_bytes=7))
    with core.db.write() as session:
        assert capacity.recount(session, one)
        assert not capacity.recount(session, one)
        assert not capacity.recount(session, "nobody")
    assert pool_of(core, three[0]).charged_bytes > GIB
    told = [event for event in rows(core, models.Event) if event.type == "capacity.corrected"]
    assert [event.backend_id for event in told] == [one]


def test_rows_of_a_pool_that_has_no_row_are_not_forgotten(core, three):
    volumes.create(core, T, volume(replicas=3))
    with core.db.write() as session:
        session.execute(update(models.Replica).values(pool="gone"))
        assert capacity.recount(session, three[0].persistent_id)
    assert pool_of(core, three[0]).charged_bytes == 0
    lost = pool_of(core, three[0], "gone")
    assert (lost.state, lost.replicas) == ("failed", 1)


def test_a_lost_race_is_tried_again_with_fresh_eyes(core, monkeypatch):
    full, empty = add_node(core), add_node(core)
    with core.db.read() as session:
        stale = shortlist.candidates(session, [full.persistent_id])
    with core.db.write() as session:
        mine = models.Pool.backend_id == full.persistent_id
        session.execute(update(models.Pool).where(mine).values(total_bytes=0))
    real, looks = placing.choose, []

    def choose(core, session, ask):
        looks.append(1)
        return stale if len(looks) < 3 else real(core, session, ask)

    monkeypatch.setattr(placing, "choose", choose)
    uid = volumes.create(core, T, volume("third"))
    assert len(looks) == 3
    assert shown(core, uid).location[0].backend.persistent_id == empty.persistent_id
    assert agree(core)


def test_a_race_lost_each_time_is_an_answer(core, three, monkeypatch):
    with core.db.read() as session:
        stale = shortlist.candidates(session, [three[0].persistent_id])
    with core.db.write() as session:
        session.execute(update(models.Pool).values(total_bytes=1))
    monkeypatch.setattr(placing, "choose", lambda *_: stale)
    with pytest.raises(errors.NoSpaceError, match="8 attempts in a row") as caught:
        volumes.create(core, T, volume())
    assert caught.value.node == three[0].persistent_id
    assert rows(core, models.Volume) == []
    assert agree(core)


def test_many_at_once_never_sell_twice(core):
    core.conf.set_override("lock_timeout", 20, group="server")
    for _ in range(3):
        fast(core, total_bytes=10 * GIB)
    made, refused = [], []

    def work(number):
        for again in range(6):
            try:
                made.append(volumes.create(core, T, volume(f"{number}-{again}", asked=GUARANTEE)))
            except errors.NoSpaceError as exc:
                refused.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (30, 18)
    assert agree(core)
    assert all(one.charged_bytes == one.total_bytes for one in rows(core, models.Pool))
    assert info.get(core).total_free_space == 0


def fill(core, fleet):
    with core.db.write() as session:
        for table in (models.Pool, models.Backend):
            session.execute(table.__table__.delete())
        seen = set()
        for one in fleet:
            if one.backend_id not in seen:
                seen.add(one.backend_id)
                session.add(
                    models.Backend(
                        persistent_id=one.backend_id,
                        mgmt_ips=[],
                        mgmt_port=1,
                        portals=[],
                        state=one.state,
                        mode=one.mode,
                        cordoned=bool(one.cordoned),
                        rack=one.rack,
                        zone=one.zone,
                        region=one.region,
                        max_iops=one.node_max_iops,
                        max_bw=one.node_max_bw,
                        sold_iops=one.node_sold_iops,
                        sold_bw=one.node_sold_bw,
                    )
                )
                session.flush()
            session.add(
                models.Pool(
                    backend_id=one.backend_id,
                    name=one.pool,
                    state=one.pool_state,
                    spans=bool(one.spans),
                    total_bytes=one.total,
                    used_bytes=one.used,
                    charged_bytes=one.charged,
                    measured_iops=one.max_iops,
                    declared_bw=one.max_bw,
                    sold_iops=one.sold_iops,
                    sold_bw=one.sold_bw,
                    iops=one.iops,
                    bw=one.bw,
                    used_at=one.used_at,
                    ssds=[],
                )
            )


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fleets(most=7), ASKS, RULES)
def test_the_shortlist_of_the_database_changes_nothing(core, fleet, ask, rules):
    fill(core, fleet)
    patch = pytest.MonkeyPatch()
    patch.setattr(placing, "rules", lambda _conf: rules)
    core.shortlists.forget()
    patch.setattr(shortlist, "POOLS", 3)
    with patch.context(), core.db.read() as session:
        whole = shortlist.candidates(session)
        told = [one._replace(mgmt_ips="[]", mgmt_port=0) for one in whole]
        assert sorted(told) == sorted(fleet)
        try:
            wanted = placement.place(whole, ask, rules)
        except errors.NoSpaceError as exc:
            with pytest.raises(errors.NoSpaceError) as caught:
                placing.choose(core, session, ask)
            told = [one["backendId"] for one in exc.details.get("refusals", [])]
            assert [one["backendId"] for one in caught.value.details.get("refusals", [])] == told
        else:
            best = [placement.weight(one, ask, rules) for one in wanted]
            # The second time from the nodes that were the best before.
            for _ in range(2):
                found = placing.choose(core, session, ask)
                assert [placement.weight(one, ask, rules) for one in found] == pytest.approx(best)
    patch.undo()


def test_a_placement_reads_few_rows_however_large_the_fleet(core):
    nodes = [add_node(core) for _ in range(40)]
    with core.db.read() as session:
        some, cut = shortlist.best(session, Ask(1, GIB), Rules())
        assert len(some) == shortlist.POOLS < len(nodes)
        assert cut is not None
        asked = Ask(1, GIB, backend_id=nodes[0].persistent_id)
        some, cut = shortlist.best(session, asked, Rules())
        assert [one.backend_id for one in some] == [nodes[0].persistent_id]
        assert cut is None


def test_the_best_nodes_are_known_for_a_moment(core, monkeypatch):
    nodes = [add_node(core, total_bytes=100 * GIB) for _ in range(6)]
    monkeypatch.setattr(shortlist, "POOLS", 2)
    core.shortlists = Recent(3600)
    looks, real = [], shortlist.best

    def best(*args):
        looks.append(1)
        return real(*args)

    monkeypatch.setattr(shortlist, "best", best)
    held = []
    for number in range(len(nodes)):
        uid = volumes.create(core, T, volume(f"v{number}", gib=10))
        held.append(shown(core, uid).location[0].backend.persistent_id)
    assert sorted(held) == sorted(node.persistent_id for node in nodes), "the emptiest each time"
    assert len(looks) == len(nodes) / 2
    with core.db.write() as session:
        session.execute(update(models.Backend).values(cordoned=True))
    with pytest.raises(errors.NoSpaceError, match="cordoned"):
        volumes.create(core, T, volume("none", gib=10))


def test_only_the_first_of_the_best_nodes_are_looked_at_again(core, monkeypatch):
    nodes = [add_node(core, total_bytes=100 * GIB) for _ in range(12)]
    looks, real = [], shortlist.candidates
    monkeypatch.setattr(shortlist, "POOLS", 11)
    core.shortlists = Recent(3600)

    def candidates(session, ids=None):
        looks.append(ids)
        return real(session, ids)

    monkeypatch.setattr(shortlist, "candidates", candidates)
    held = set()
    for number in range(10):
        uid = volumes.create(core, T, volume(f"v{number}", gib=10))
        held.add(shown(core, uid).location[0].backend.persistent_id)
    assert len(held) == 10, "the emptiest each time"
    assert [len(ids) for ids in looks] == [11] + [placing.FIRST] * 9
    looks.clear()
    free = {node.persistent_id for node in nodes} - held
    with core.db.write() as session:
        left = update(models.Backend).where(models.Backend.persistent_id.not_in(free))
        session.execute(left.values(mode=models.DRAINING))
        session.execute(update(models.Pool).values(charged_bytes=10 * GIB))
    uid = volumes.create(core, T, volume("last", gib=10))
    assert shown(core, uid).location[0].backend.persistent_id in free


def test_nodes_that_others_took_meanwhile_give_way_to_the_rest_of_the_list():
    some = shortlist.Shortlist({"a": 0.3, "b": 0.1, "c": 0.2}, 0.25)
    assert some.first(1) == (["b"], 0.2)
    assert some.first(2) == (["b", "c"], 0.25)
    assert some.first(3) == some.whole() == (["a", "b", "c"], 0.25)
    some.note({"b": 0.4})
    assert some.first(1) == (["c"], 0.25)
    assert shortlist.Shortlist({"a": 0.3}, None).first(1) == (["a"], None)


def test_a_create_is_a_handful_of_statements(core, three, monkeypatch):
    monkeypatch.setattr(shortlist, "POOLS", 2)
    core.shortlists = Recent(3600)
    volumes.create(core, T, volume("first"))
    seen = []

    def note(_conn, _cursor, statement, *_):
        seen.append(" ".join(statement.split()[:2]))

    begun = []

    def begin(_conn):
        begun.append(len(seen))

    event.listen(core.db.engine, "begin", begin)
    event.listen(core.db.engine, "before_cursor_execute", note)
    volumes.create(core, T, volume("second"))
    event.remove(core.db.engine, "before_cursor_execute", note)
    event.remove(core.db.engine, "begin", begin)
    assert begun == [0, 6]
    assert seen == [
        "SELECT volumes.uuid,",
        "SELECT backends.persistent_id,",
        "UPDATE backends",
        "UPDATE pools",
        "INSERT INTO",
        "INSERT INTO",
        "UPDATE volumes",
        "INSERT INTO",
    ]


def test_a_hot_node_gets_nothing_new(core):
    hot, cool = fast(core, 2)
    with core.db.write() as session:
        session.execute(
            update(models.Pool)
            .where(models.Pool.backend_id == hot.persistent_id)
            .values(iops=900, used_at=now_ms())
        )
    for number in range(3):
        uid = volumes.create(core, T, volume(f"v{number}"))
        assert node_of(core, shown(core, uid).location[0]) is cool
    with pytest.raises(errors.NoSpaceError, match="node-hot: 90% of what it delivers"):
        volumes.create(core, T, volume("two", replicas=2))


def test_a_busy_node_that_nobody_measured_comes_last(core):
    nodes = [add_node(core) for _ in range(3)]
    busy = nodes[1]
    with core.db.write() as session:
        session.execute(
            update(models.Pool)
            .where(models.Pool.backend_id == busy.persistent_id)
            .values(iops=50_000, used_at=now_ms())
        )
    held = []
    for number in range(4):
        uid = volumes.create(core, T, volume(f"v{number}", gib=10))
        held.append(node_of(core, shown(core, uid).location[0]))
    assert busy not in held
    uid = volumes.create(core, T, volume("all", replicas=3))
    assert busy in [node_of(core, place) for place in shown(core, uid).location]


def test_free_space_is_what_new_volumes_could_have(core, three):
    assert info.get(core).total_free_space == 300
    volumes.create(core, T, volume(gib=10))
    assert info.get(core).total_free_space == 290
    tenant = tenants.list_all(core)[0]
    assert (tenant.capacity, tenant.consumed_capacity) == (300, 10)
    used = [one.backend_id for one in rows(core, models.Replica)]
    empty = next(one for one in three if one.persistent_id not in used)
    backends.update(core, empty.persistent_id, BackendUpdate(cordoned=True))
    assert info.get(core).total_free_space == 190
    assert ports(core, empty)


def test_an_ask_of_more_replicas_leaves_out_what_is_taken(core):
    for number in range(4):
        add_node(core, rack=f"r{number % 3}")
    uid = volumes.create(core, T, volume(replicas=2))
    with core.db.read() as session:
        row = session.get_one(models.Volume, uid)
        ask = placing.ask_for(core, row, replicas=1)
        assert len(ask.taken) == len(ask.taken_racks) == 2
        spot = placing.choose(core, session, ask)[0]
        assert spot.backend_id not in ask.taken
        assert spot.rack not in ask.taken_racks
        with pytest.raises(errors.NoSpaceError, match="same-rack"):
            placing.choose(core, session, dataclasses.replace(ask, replicas=2))
