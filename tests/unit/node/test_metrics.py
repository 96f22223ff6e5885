# SPDX-License-Identifier: Apache-2.0
"""What a node tells Prometheus."""

import pathlib
import re

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from kumo_client import errors
from kumo_node import app
from kumo_node.auth import Tokens
from kumo_node.metrics import Metrics
from tests.fakes.node import TOKEN
from tests.unit.node.conftest import MIB, VOLUME, export, replica, snapshot, uid

R1, S1 = uid(1), uid(0x51)
PAGE = pathlib.Path(__file__).resolve().parents[3] / "doc/source/reference/node-metrics.rst"


@pytest.fixture
def api(machine, node):
    made = app.make(node, Tokens(str(machine.root / "token")))
    with TestClient(made, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def samples(api):
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name.removeprefix("kumo_storage_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_what_the_node_holds(api, machine, node):
    node.replicas.put(R1, replica(64))
    node.exports.put(R1, export())
    node.snapshots.put(S1, snapshot(R1))
    seen = samples(api)
    (pool,) = node.info().pools
    assert seen["pool_size_bytes", "pool"] == pool.total_bytes
    assert seen["pool_provisioned_bytes", "pool"] == 128 * MIB
    assert seen["pool_state", "pool", "ok"] == 1
    assert seen["ssd_state", pool.ssds[0].path, "pool", "SN-vdb", "ok"] == 1
    assert (seen["pool_replicas", "pool"], seen["pool_snapshots", "pool"]) == (1, 1)
    assert (seen["exports", "plain"], seen["exports", "replicated"]) == (1, 0)
    assert (seen["copies", "running"], seen["copy_remaining_bytes",]) == (0, 0)
    assert seen["generation",] == node.ctx.spec.data.generation
    assert seen["ability", "limits"] == seen["up",] == 1
    assert seen["process_resident_memory_bytes",] > 0
    assert not any(key[0] == "heartbeats_total" for key in seen)


def test_requests_are_counted_by_the_template_of_their_path(api):
    api.put(f"/v1/replicas/{R1}", json={"volumeId": VOLUME, "bytes": 16 * MIB})
    api.get(f"/v1/replicas/{R1}")
    api.get(f"/v1/replicas/{uid(9)}")
    api.get("/v1/whatever")
    api.request("BREW", "/v1/info")
    api.get("/v1/info", headers={"Authorization": "Bearer wrong"})
    seen = samples(api)
    path = "/v1/replicas/{uuid}"
    assert seen["requests_total", "PUT", path, "200"] == 1
    assert seen["requests_total", "GET", path, "200"] == 1
    assert seen["requests_total", "GET", path, "404"] == 1
    assert seen["requests_total", "GET", "other", "404"] == 1
    assert seen["requests_total", "GET", "other", "401"] == 1
    assert seen["request_duration_seconds_count", "GET", path] == 2
    assert not any("whatever" in str(key) or "BREW" in key for key in seen)


def test_heartbeats_are_counted(api, node, monkeypatch):
    class Beats:
        ok, failed, last = 3, 2, 1234.0

        def stop(self):
            pass

    node.heartbeats = Beats()
    seen = samples(api)
    assert (seen["heartbeats_total", "ok"], seen["heartbeats_total", "failed"]) == (3, 2)
    assert seen["heartbeat_last_seconds",] == 1234


def test_the_smart_log_is_told_when_there_is_one(api, node, monkeypatch):
    info = node.info()
    ssd = info.pools[0].ssds[0]
    ssd.wear_percent, ssd.temperature, ssd.media_errors = 7, 40, 0
    monkeypatch.setattr(node, "info", lambda: info)
    seen = samples(api)
    assert seen["ssd_wear_percent", ssd.path, "pool", "SN-vdb"] == 7
    assert seen["ssd_temperature_celsius", ssd.path, "pool", "SN-vdb"] == 40


def test_a_node_that_cannot_look_at_itself_says_so(api, node, monkeypatch):
    node.replicas.put(R1, replica())

    def broken():
        raise errors.BackendUnavailableError("lvs gives no answer")

    monkeypatch.setattr(node, "info", broken)
    seen = samples(api)
    assert seen["up",] == 0
    assert seen["pool_replicas", "pool"] == 1


def test_it_needs_a_token(api):
    assert api.get("/metrics", headers={"Authorization": ""}).status_code == 401


def test_every_metric_is_documented(node):
    documented = set(re.findall(r"^``(kumo_\w+)``", PAGE.read_text(), re.MULTILINE))
    told = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics(node).registry.collect()
        if family.name.startswith("kumo_")
    }
    assert documented == told
