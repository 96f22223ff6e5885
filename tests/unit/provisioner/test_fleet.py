# SPDX-License-Identifier: Apache-2.0
"""What nodes tell, and what operators want of them."""

import uuid

import pytest
from sqlalchemy import event, update

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.backend import BackendUpdate, DeclaredPool
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.node import Heartbeat
from kumo_provisioner import reconcile, worker
from kumo_provisioner.db import models
from kumo_provisioner.services import backends, placing, probing, reports, volumes
from kumo_provisioner.services.placing import Growth
from tests.fakes.node_state import FakePool
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, node_of, ports, published, rows, shown
from tests.unit.provisioner.test_capacity import agree, fast


def told(core, kind):
    return [one for one in rows(core, models.Event) if one.type == kind]


def beat(core, model, **changes):
    probing.heartbeat(core, Heartbeat.model_validate(model.info().wire() | changes))


def view(core, model):
    return backends.list_all(core, model.persistent_id)[0]


class Writes:
    """Counts transactions that write, and rows that are updated."""

    def __init__(self, core):
        self.core, self.statements = core, []

    def _seen(self, _conn, _cursor, statement, *_):
        if statement.split()[0] in ("UPDATE", "INSERT", "DELETE"):
            self.statements.append(statement)

    def __enter__(self):
        event.listen(self.core.db.engine, "before_cursor_execute", self._seen)
        return self.statements

    def __exit__(self, *_):
        event.remove(self.core.db.engine, "before_cursor_execute", self._seen)


@pytest.fixture
def quiet(core):
    core.conf.set_override("refresh_interval", 3600, group="reconcile")


def test_a_probe_that_brings_no_news_writes_nothing(core, three, quiet):
    with Writes(core) as written:
        assert not probing.probe(core)
    assert written == []
    three[0].pools["pool"].used_bytes = 1 * GIB
    with Writes(core) as written:
        probing.probe(core)
    assert written == [], "it has not moved far"
    three[0].pools["pool"].used_bytes = 30 * GIB
    probing.probe(core)
    assert view(core, three[0]).pools[0].used_bytes == 30 * GIB
    core.conf.set_override("refresh_interval", 0, group="reconcile")
    three[0].pools["pool"].used_bytes += 1
    probing.probe(core)
    assert view(core, three[0]).pools[0].used_bytes == 30 * GIB + 1


def test_a_large_fleet_is_probed_in_chunks_and_slow_nodes_last(core, monkeypatch):
    monkeypatch.setattr(probing, "CHUNK", 2)
    models_ = [add_node(core) for _ in range(5)]
    core.nodes.down.add(ports(core, models_[0]))
    for _ in range(2):
        probing.probe(core)
    asked = []
    real = core.nodes.call_all
    monkeypatch.setattr(
        core.nodes, "call_all", lambda calls, **kw: asked.append(list(calls)) or real(calls, **kw)
    )
    probing.probe(core)
    assert [len(some) for some in asked] == [2, 2, 1]
    assert asked[-1] == [models_[0].persistent_id]
    assert {view(core, one).state for one in models_[1:]} == {"Available"}


def test_nodes_that_send_heartbeats_are_probed_less_often(core, three, monkeypatch):
    beat(core, three[0])
    core.nodes.calls.clear()
    probing.probe(core)
    assert len(core.nodes.calls) == 2
    probing.probe(core, everyone=True)
    assert len(core.nodes.calls) == 5
    core.conf.set_override("probe_interval_alive", 0.2, group="reconcile")
    monkeypatch.setattr(probing, "now_ms", lambda now=probing.now_ms: now() + 10_000)
    core.nodes.calls.clear()
    probing.probe(core)
    assert len(core.nodes.calls) == 3


def test_a_heartbeat_tells_what_a_probe_would(core, three, quiet):
    model = three[0]
    model.pools["pool"].used_bytes = 50 * GIB
    beat(core, model, problems=["disk /dev/x is worn"], name="new-name")
    shown_ = view(core, model)
    assert shown_.last_heartbeat > 0
    assert (shown_.name, shown_.problems) == ("new-name", ["disk /dev/x is worn"])
    assert shown_.pools[0].used_bytes == 50 * GIB
    with Writes(core) as written:
        beat(core, model, problems=["disk /dev/x is worn"], name="new-name")
    assert written == []
    assert len(told(core, "backend.problem")) == 1
    beat(core, model, name="new-name")
    assert "no longer" in told(core, "backend.problem")[-1].message


def test_a_heartbeat_of_nobody_is_refused(core, three):
    stranger = three[0].info().wire() | {"persistentID": str(uuid.uuid4())}
    with pytest.raises(errors.NotExistsError, match="kumo backend add"):
        probing.heartbeat(core, Heartbeat.model_validate(stranger))


def test_a_heartbeat_does_not_show_that_the_node_can_be_called(core, three):
    port = ports(core, three[0])
    core.nodes.down.add(port)
    for _ in range(2):
        probing.probe(core)
    assert view(core, three[0]).state == "Unavailable"
    beat(core, three[0])
    assert view(core, three[0]).state == "Unavailable"
    core.nodes.down.clear()
    assert probing.probe(core), "and it is probed although its heartbeats come"
    assert view(core, three[0]).state == "Available"
    assert [one.level for one in told(core, "backend.unavailable")] == ["WARN"]
    assert len(told(core, "backend.available")) == 1


def row_of(core, model):
    with core.db.read() as session:
        return session.get_one(models.Backend, model.persistent_id)


def test_a_reboot_or_change_asks_for_a_reconcile(core, three, quiet):
    def later():
        with core.db.write() as session:
            far = probing.now_ms() + 10**9
            session.execute(update(models.Backend).values(next_reconcile=far, node_generation=1))
        core.wake.clear()

    later()
    beat(core, three[0])
    assert row_of(core, three[0]).next_reconcile > probing.now_ms() + 10**8
    three[0].generation += 1
    beat(core, three[0])
    soon = row_of(core, three[0]).next_reconcile - probing.now_ms()
    assert 0 < soon <= 1000 * core.conf.reconcile.interval
    assert not core.wake.is_set()
    three[0].boot_id = "another"
    beat(core, three[0])
    assert row_of(core, three[0]).next_reconcile == 0
    assert core.wake.is_set()
    later()
    three[0].boot_id = "a third"
    assert not probing.probe(core), "it has told enough by itself"
    assert probing.probe(core, everyone=True)
    assert row_of(core, three[0]).next_reconcile == 0


def test_heartbeats_over_the_wire(web, three):
    body = three[0].info().wire()
    assert web.post("/heartbeat", json=body).json()["status"] == "Success"
    body["persistentID"] = "nobody"
    assert web.post("/heartbeat", json=body).json()["status"] == "NotExists"
    assert web.post("/heartbeat", json={}).json()["status"] == "InvalidInput"
    assert "heartbeat" in web.get("/info").json()["capabilities"]


# -- pools --------------------------------------------------------------------------------------


def test_pools_come_and_go(core):
    model = add_node(core, pools={"a": 10 * GIB, "b": 20 * GIB})
    assert [(one.name, one.total_bytes // GIB) for one in view(core, model).pools] == [
        ("a", 10),
        ("b", 20),
    ]
    volumes.create(core, T, volume(gib=15))
    lost = model.pools.pop("b")
    del model.pools["a"]
    model.pools["c"] = FakePool("c", 5 * GIB)
    probing.probe(core)
    states = {one.name: one.state for one in view(core, model).pools}
    assert states == {"b": "failed", "c": "ok"}, "what holds replicas is not forgotten"
    probing.probe(core)
    assert len(told(core, "pool.state")) == 1
    model.pools["b"] = lost
    probing.probe(core)
    assert {one.state for one in view(core, model).pools} == {"ok"}
    assert agree(core)


def test_a_failed_pool_takes_its_replicas_along_and_no_others(core):
    for _ in range(3):
        add_node(core, pools={"a": 10 * GIB, "b": 10 * GIB})
    twice = volumes.create(core, T, volume("twice", replicas=2))
    once = volumes.create(core, T, volume("once"))
    published(core, twice, HostProbe(host_nqn="nqn.2014-08.org.nvmexpress:x", host_id="x"))
    leg = shown(core, twice).location[0]
    model = node_of(core, leg)
    for pool in model.pools.values():
        pool.state = "failed" if pool.name == leg.pool else "ok"
    beat(core, model)
    states = [(one.replica_state, one.freshness) for one in shown(core, twice).location]
    assert states == [("Missing", "stale"), ("Available", "fresh")]
    assert shown(core, once).location[0].replica_state == "Available"
    assert [one.level for one in told(core, "pool.state")] == ["FATAL"]
    assert [one.replica_id for one in told(core, "replica.state")] == [leg.uuid]
    beat(core, model)
    assert len(told(core, "replica.state")) == 1


def test_the_replicas_of_a_failed_pool_are_there_again_with_it(core):
    model = add_node(core)
    uid = volumes.create(core, T, volume())
    model.pools["pool"].state = "failed"
    probing.probe(core)
    for pool, replica in (("failed", "Missing"), ("ok", "Available")):
        model.pools["pool"].state = pool
        probing.probe(core)
        reconcile.run(core)
        assert shown(core, uid).location[0].replica_state == replica


def test_the_last_leg_with_all_writes_stays_one(core):
    model = add_node(core)
    uid = volumes.create(core, T, volume())
    model.pools["pool"].state = "failed"
    with core.locks.hold(uid):
        probing.probe(core)
        assert shown(core, uid).location[0].replica_state == "Available", "its volume is at work"
    probing.probe(core)
    leg = shown(core, uid).location[0]
    assert (leg.replica_state, leg.freshness) == ("Missing", "fresh")


@pytest.mark.parametrize("state", ["full", "readonly", "failed"])
def test_a_pool_out_of_order_gets_nothing_new(core, state):
    model = add_node(core, max_iops=10)
    uid = volumes.create(core, T, volume())
    model.pools["pool"].state = state
    probing.probe(core)
    with pytest.raises(errors.NoSpaceError, match=f"pool-state: the pool's state is {state}"):
        volumes.create(core, T, volume("other"))
    with pytest.raises(errors.NoSpaceError, match="pool-state"):
        volumes.extend(core, T, uid, 2)


def test_growth_on_a_pool_that_is_gone_is_refused(core, three):
    with core.db.read() as session:
        row = session.get_one(models.Backend, three[0].persistent_id)
        with pytest.raises(errors.NoSpaceError, match="the node has no such pool"):
            placing.refuse_growth(session, [Growth(row, "nothing", 1)])


def test_the_pool_of_an_older_record_gets_the_name_that_the_node_gives(core):
    model = add_node(core, pools={"kumo-pool": 10 * GIB})
    uid = volumes.create(core, T, volume(gib=2))
    snapless = rows(core, models.Replica)[0].reserved_bytes
    with core.db.write() as session:
        for table in (models.Replica, models.SnapshotPart, models.Removal):
            session.execute(update(table).values(pool="pool"))
        session.execute(update(models.Pool).values(name="pool", used_at=0))
    probing.probe(core)
    pools = view(core, model).pools
    assert [(one.name, one.state, one.charged_bytes) for one in pools] == [
        ("kumo-pool", "ok", snapless)
    ]
    assert shown(core, uid).location[0].pool in ("kumo-pool", "")
    assert rows(core, models.Replica)[0].pool == "kumo-pool"
    assert agree(core)


# -- what an operator wants ---------------------------------------------------------------------


def change(core, model, **values):
    backends.update(core, model.persistent_id, BackendUpdate(**values))


def test_a_cordoned_node_gets_nothing_new_and_serves_on(core):
    model = add_node(core)
    uid = volumes.create(core, T, volume())
    change(core, model, cordoned=True)
    assert view(core, model).cordoned
    assert view(core, model).state == "Available"
    with pytest.raises(errors.NoSpaceError, match="cordon: it is cordoned"):
        volumes.create(core, T, volume("other"))
    volumes.extend(core, T, uid, 2)
    change(core, model, cordoned=True)
    change(core, model, cordoned=False)
    volumes.create(core, T, volume("other"))
    assert [one.details["on"] for one in told(core, "backend.cordoned")] == [True, False]


def test_a_node_in_maintenance_may_go_away(core):
    model = add_node(core)
    change(core, model, maintenance=True)
    assert view(core, model).state == "Maintenance"
    with pytest.raises(errors.NoSpaceError, match="mode: it is Maintenance"):
        volumes.create(core, T, volume())
    core.nodes.down.add(ports(core, model))
    for _ in range(2):
        probing.probe(core)
    assert view(core, model).state == "Unavailable"
    event_ = told(core, "backend.unavailable")[0]
    assert event_.level == "INFO"
    assert "as expected in maintenance" in event_.message
    core.nodes.down.clear()
    probing.probe(core)
    assert view(core, model).state == "Maintenance"
    change(core, model, maintenance=False)
    assert view(core, model).state == "Available"


def test_maintenance_does_not_end_a_drain(core):
    model = add_node(core)
    with core.db.write() as session:
        session.execute(update(models.Backend).values(mode=models.DRAINING))
    with pytest.raises(errors.ConflictError, match="is Draining"):
        change(core, model, maintenance=True)
    change(core, model, maintenance=False)
    assert view(core, model).state == "Draining"


def test_what_is_declared_wins_and_can_be_taken_back(core):
    model = fast(core)
    change(core, model, pools=[DeclaredPool(name="pool", max_iops=5000)], max_bw=77)
    shown_ = view(core, model)
    assert (shown_.pools[0].max_iops, shown_.pools[0].max_bw) == (5000, 1000)
    assert (shown_.total_iops, shown_.total_bw) == (5000, 77)
    probing.probe(core)
    assert view(core, model).pools[0].max_iops == 5000
    volumes.create(core, T, volume(asked={"desired_iops_per_gb": 1500, "desired_bw_per_gb": 50}))
    shown_ = view(core, model)
    assert (shown_.available_iops, shown_.available_bw, shown_.replicas) == (3500, 27, 1)
    for values in (
        {"pools": [DeclaredPool(name="pool")]},
        {"pools": [DeclaredPool(name="pool", max_iops=2000, max_bw=10)]},
        {"max_iops": 1499},
        {"max_bw": 49},
    ):
        with pytest.raises(errors.ConflictError, match="are guaranteed"):
            change(core, model, **values)
    with pytest.raises(errors.InvalidInputError, match="has no pool x"):
        change(core, model, zone="z", pools=[DeclaredPool(name="x")])
    assert view(core, model).zone == ""
    change(core, model, max_iops=0, max_bw=0, pools=[DeclaredPool(name="pool", max_iops=1500)])
    assert view(core, model).available_iops == 0


def test_the_probe_is_a_duty_of_one_instance(core, three):
    duty = next(
        one for module in worker.DUTY_MODULES for one in module.DUTIES if one.name == "probe"
    )
    three[0].boot_id = "another"
    core.wake.clear()
    duty.run(core)
    assert core.wake.is_set()
    assert duty.interval(core) == core.conf.reconcile.probe_interval


def test_news_are_told_apart_from_figures(core):
    model = fast(core)
    row = view_row(core, model)
    assert not reports.news(row, model.info())
    pool = model.pools["pool"]
    for name, value in (
        ("used_bytes", 50 * GIB),
        ("iops", 100),
        ("bw", 100),
        ("max_iops", 1001),
        ("state", "full"),
        ("spans", True),
    ):
        kept = getattr(pool, name)
        setattr(pool, name, value)
        assert reports.news(row, model.info()), name
        setattr(pool, name, kept)
    pool.metadata_percent = 50.0
    assert not reports.news(row, model.info())
    told_ = model.info()
    told_.pools[0].ssds[0].temperature = 70
    assert not reports.news(row, told_)
    told_.pools[0].ssds[0].media_errors = 1
    assert reports.news(row, told_)


def view_row(core, model):
    with core.db.read() as session:
        return probing._rows(session, [model.persistent_id])[0]
