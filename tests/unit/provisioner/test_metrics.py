# SPDX-License-Identifier: Apache-2.0
"""What /metrics tells: of the record, of requests and of nodes."""

import pathlib
import re
import sqlite3

import pytest
import sqlalchemy
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from kumo_client import errors
from kumo_client.schemas import task
from kumo_client.schemas.node import Ssd
from kumo_client.schemas.volume import REPLICA_MISSING
from kumo_provisioner import app, auth, settling
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.db.failures import RolledBackError
from kumo_provisioner.metrics import Metrics, record, watched
from kumo_provisioner.services import volumes
from tests.fakes.node_model import NodeModel
from tests.unit.provisioner.conftest import READER, TOKEN, add_node, volume
from tests.unit.provisioner.test_edge import assert_error

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Samples(dict):
    """Values by name and values of labels, in any order."""

    def __getitem__(self, key):
        return super().__getitem__((key[0], *sorted(key[1:])))

    def __contains__(self, key):
        return super().__contains__((key[0], *sorted(key[1:])))


def samples(text):
    return Samples(
        ((one.name, *sorted(one.labels.values())), one.value)
        for family in text_string_to_metric_families(text)
        for one in family.samples
    )


def scraped(web):
    answer = web.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


@pytest.fixture(autouse=True)
def plain_ids(monkeypatch):
    """Ids of nodes that can be written down in a test."""
    make = NodeModel.__init__

    def init(self, name, **options):
        make(self, name, **options)
        self.persistent_id = name

    monkeypatch.setattr(NodeModel, "__init__", init)


def of_record(core):
    return samples(record.Record(core).text().decode())


def test_the_names_that_existing_dashboards_know(core):
    add_node(core, total_bytes=8 << 30, rack="r1", zone="z1", region="e1")
    volumes.create(core, "0", volume(gib=2))
    seen = of_record(core)
    place = ("node-1000", "node-1000", "r1", "z1", "e1")
    used = seen["ks_node_used_capacity_bytes", *place]
    assert used >= 2 << 30
    assert used + seen["ks_node_free_capacity_bytes", *place] == 8 << 30
    assert seen["ks_node_state", *place] == 1
    assert seen["kumo_pool_charged_bytes", "node-1000", "pool"] == used
    assert seen["kumo_pool_replicas", "node-1000", "pool"] == 1
    assert seen["kumo_pool_state", "node-1000", "pool", "ok"] == 1


def test_labels_are_escaped(core, three):
    odd = 'a "b" \\ c'
    with core.db.write() as session:
        session.get(models.Backend, "node-1000").name = odd
    assert ("kumo_node_problems", "node-1000", odd) in of_record(core)


def test_nodes_out_of_service(core, three):
    with core.db.write() as session:
        rows = {one.persistent_id: one for one in session.query(models.Backend)}
        rows["node-1000"].cordoned = True
        rows["node-1001"].mode = models.MAINTENANCE
        rows["node-1002"].state = "Unavailable"
        rows["node-1002"].problems = ["one", "two"]
        rows["node-1002"].last_probe = now_ms() - 60_000
        rows["node-1002"].last_heartbeat = 0
    seen = of_record(core)
    served = [seen["kumo_node_in_service", f"node-{n}", f"node-{n}"] for n in (1000, 1001, 1002)]
    assert served == [0, 0, 1]
    assert seen["ks_node_state", "node-1002", "node-1002", "", "", ""] == 2
    assert seen["kumo_node_problems", "node-1002", "node-1002"] == 2
    assert 60 <= seen["kumo_node_silence_seconds", "node-1002", "node-1002"] < 90


def test_disks(core):
    add_node(core)
    healthy = Ssd(path="/dev/a", serial="A", wear_percent=7, media_errors=1, temperature=40)
    failed = Ssd(path="/dev/b", serial="B", state="failed", io_errors=3)
    with core.db.write() as session:
        session.query(models.Pool).one().ssds = [healthy.wire(), failed.wire()]
    seen = of_record(core)
    a, b = ("node-1000", "pool", "A", "/dev/a"), ("node-1000", "pool", "B", "/dev/b")
    assert seen["kumo_ssd_ok", *a] == 1
    assert seen["kumo_ssd_ok", *b] == 0
    assert seen["kumo_ssd_wear_percent", *a] == 7
    assert seen["kumo_ssd_media_errors", *a] == 1
    assert seen["kumo_ssd_temperature_celsius", *a] == 40
    assert seen["kumo_ssd_io_errors", *b] == 3
    assert ("kumo_ssd_wear_percent", *b) not in seen


def test_replicas_by_state_and_freshness(core, three):
    for name in ("a", "b"):
        volumes.create(core, "0", volume(name, replicas=3))
    with core.db.write() as session:
        legs = session.query(models.Replica).all()
        legs[0].state, legs[0].freshness = REPLICA_MISSING, models.STALE
        legs[1].freshness = models.BLANK
    seen = of_record(core)
    assert seen["kumo_replicas", "Available", "fresh"] == 4
    assert seen["kumo_replicas", "Missing", "stale"] == 1
    assert seen["kumo_replicas", "Available", "blank"] == 1
    assert seen["kumo_volumes", "0"] == 2


def test_what_is_unfinished(core, three):
    made = volumes.create(core, "0", volume())
    now = now_ms()
    with core.db.write() as session:
        row = session.get(models.Volume, made)
        settling.add(row, settling.EXTEND)
        settling.add(row, settling.LIMITS)
        for number, state in enumerate((task.IDLE, task.IDLE, task.RUNNING, task.FINISHED)):
            session.add(
                models.Task(
                    uuid=str(number),
                    type=task.DRAIN,
                    state=state,
                    created=now - 1000 * (number + 1),
                    updated=now,
                )
            )
        session.add(models.Removal(uuid="r", kind="replica", backend_id="node-1001", since=now))
        session.add(
            models.Removal(uuid="s", kind="replica", backend_id="node-1001", since=now, done=now)
        )
        session.add(
            models.Garbage(
                backend_id="node-1000", uuid="g", kind="replica", first_seen=now, last_seen=now
            )
        )
        session.add(models.Event(time=now, type="x"))
    seen = of_record(core)
    assert seen["kumo_volumes_unsettled", "extend"] == 1
    assert seen["kumo_volumes_unsettled", "limits"] == 1
    assert seen["kumo_volumes_unsettled", "revert"] == 0
    assert seen["kumo_tasks", "Drain", "IDLE"] == 2
    assert seen["kumo_tasks", "Drain", "RUNNING"] == 1
    assert ("kumo_tasks", "Drain", "FINISHED") not in seen
    assert 3 <= seen["kumo_task_age_seconds", "Drain"] < 30
    assert seen["kumo_node_removals", "node-1001"] == 1
    assert seen["kumo_garbage", "replica", "false"] == 1
    assert seen["kumo_events_total",] >= 1
    assert seen["kumo_instances",] == 1
    assert seen["kumo_leases",] == 0


def test_a_read_is_kept_for_a_while(core, monkeypatch):
    page = record.Record(core)
    first = samples(page.text().decode())
    add_node(core)
    assert samples(page.text().decode()) == first
    monkeypatch.setattr(record, "MAX_AGE", 0)
    assert ("kumo_pool_capacity_bytes", "node-1000", "pool") in samples(page.text().decode())


def test_without_database_old_values_are_not_shown(core, three, monkeypatch):
    def broken(_session):
        error = sqlite3.OperationalError("disk I/O error")
        raise sqlalchemy.exc.OperationalError("SELECT", {}, error)

    assert of_record(core)["kumo_database_up",] == 1
    monkeypatch.setattr(record, "_READERS", (record._nodes, broken))
    seen = of_record(core)
    assert seen["kumo_database_up",] == 0
    assert not any(name.startswith(("ks_", "kumo_pool")) for name, *_ in seen)


def test_requests_are_counted_by_route_and_never_by_path(web):
    web.get("/volumes/no-such-volume")
    web.get("/0/volumes")
    web.get("/made-up/by/a/client")
    web.request("BREW", "/volumes")
    web.get("/volumes", headers={"Authorization": "Bearer wrong"})
    seen = scraped(web)
    assert seen["kumo_requests_total", "GET", "/volumes/{uuid}", "404"] == 1
    assert seen["kumo_requests_total", "GET", "/{tenantId}/volumes", "200"] == 1
    assert seen["kumo_requests_total", "GET", "other", "404"] == 1
    assert seen["kumo_request_duration_seconds_count", "GET", "/volumes/{uuid}"] == 1
    assert seen["kumo_requests_in_progress",] == 1
    assert not any("made-up" in label or "BREW" in label for key in seen for label in key)


def test_a_request_that_breaks_off_counts_as_failed(core, three, web, monkeypatch):
    monkeypatch.setattr(volumes, "by_alias", lambda *_: 1 / 0)
    assert web.get("/volumes_by_alias/a").status_code == 500
    seen = scraped(web)
    assert seen["kumo_requests_total", "GET", "/volumes_by_alias/{alias:path}", "500"] == 1


def test_refusals_by_filter(web, core):
    with core.db.write() as session:
        session.get(models.Backend, "node-1000").cordoned = True
    answer = web.post(
        "/volumes", json={"alias": "a", "capacity": 1, "storageClass": {"numReplicas": 3}}
    )
    refusals = {one["refusedBy"] for one in answer.json()["details"]["refusals"]}
    seen = scraped(web)
    assert len(refusals) == 1
    assert seen["kumo_placement_refusals_total", refusals.pop()] == 1


class Answering:
    def put_replica(self, uuid, *, error=None):
        if error is not None:
            raise error
        return uuid


def test_calls_to_nodes_by_verb_and_result():
    metrics = Metrics()
    node = watched(Answering(), metrics.node_call)
    assert node.put_replica("u") == "u"
    for error in (errors.BusyError("busy"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            node.put_replica("u", error=error)
    seen = samples(metrics.text().decode())
    for result in ("Success", "Busy", "InternalError"):
        assert seen["kumo_node_calls_total", "put_replica", result] == 1
    assert seen["kumo_node_call_duration_seconds_count", "put_replica"] == 3


def test_repeated_transactions_and_reconciles(web, core, monkeypatch):
    monkeypatch.setattr("kumo_provisioner.db.engine.FIRST_PAUSE", 0)
    tries = []

    def second_time(_session):
        tries.append(1)
        if len(tries) == 1:
            raise RolledBackError("in the way")

    core.db.run(second_time)
    assert web.post("/reconcile", json={}).status_code == 200
    seen = scraped(web)
    assert seen["kumo_database_retries_total",] == 1
    assert seen["kumo_reconcile_duration_seconds_count",] >= 1


def test_who_may_read(web, core):
    web.headers["Authorization"] = f"Bearer {READER}"
    assert web.get("/metrics").status_code == 200
    del web.headers["Authorization"]
    assert_error(web.get("/metrics"), "Unauthorized", 401)
    bound = auth.Tokens({auth.digest(TOKEN): auth.Identity("a", auth.ADMIN, tenant="t")})
    with TestClient(app.make(core, bound, background=False)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert_error(client.get("/metrics"), "Forbidden", 403)


def test_open_by_option(core, conf):
    conf.set_override("without_token", True, group="metrics")
    with TestClient(app.make(core, auth.Tokens({}), background=False)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/volumes").status_code == 401


def test_every_metric_is_documented():
    page = (ROOT / "doc/source/reference/metrics.rst").read_text()
    documented = set(re.findall(r"^``((?:ks|kumo)_\w+)``", page, re.MULTILINE))
    metrics = Metrics()
    ours = {
        one.name + ("_total" if one.type == "counter" else "")
        for one in metrics.registry.collect()
        if one.name.startswith("kumo_")
    }
    assert documented == ours | set(record.FAMILIES)
