# SPDX-License-Identifier: Apache-2.0
"""Cinder's own API functional tests with our driver on the real provisioner.

They wait far more than they compute, so they run in several processes at once.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PARTS = 3
SECONDS = 150


def start(cluster, part, log):
    environment = os.environ | {
        "KUMO_TEST_URL": cluster.provisioner.url,
        "KUMO_TEST_CA_FILE": cluster.provisioner.ca_file,
        "KUMO_TEST_TOKEN_FILE": f"{cluster.provisioner.directory}/admin.token",
        "KUMO_TEST_SHARD": f"{part}/{PARTS}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "unittest", "-v", "tests.functional.driver.cinder_on_kumo"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@pytest.fixture
def made(cluster, monkeypatch):
    """What the nodes were told to make, in the order of the calls."""
    specs = []

    def recorded(real):
        def put_replica(uuid, spec):
            specs.append(spec)
            return real(uuid, spec)

        return put_replica

    for node in cluster.nodes.nodes:
        monkeypatch.setattr(node.model, "put_replica", recorded(node.model.put_replica))
    return specs


def source_kind(spec):
    if spec.source is None:
        return "none"
    return "snapshot" if spec.source.snapshot else "replica"


@pytest.fixture
def output(cluster, made, tmp_path):
    """What the tests of Cinder printed; they have all ended."""
    processes = []
    try:
        for part in range(PARTS):
            with (tmp_path / f"{part}.log").open("wb") as log:
                processes.append(start(cluster, part, log))
        statuses = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    texts = [(tmp_path / f"{part}.log").read_text(errors="replace") for part in range(PARTS)]
    for status, text in zip(statuses, texts, strict=True):
        assert status == 0, text[-6000:]
    return "\n".join(texts)


@pytest.mark.slow
def test_cinders_tests_pass_and_use_the_provisioner(cluster, made, output):
    tests = set(re.findall(r"^(test_\w+) \(.*OnKumo", output, re.MULTILINE))
    assert {
        "test_create_and_delete_volume",
        "test_create_volume_from_source_vol_inherits_voltype",
        "test_create_volume_from_snapshot_inherits_voltype",
        "test_create_and_delete_group",
        "test_create_and_delete_group_snapshot",
        "test_create_group_from_group_snapshot",
        "test_create_group_from_source_group",
    } <= tests
    assert sum(int(count) for count in re.findall(r"^Ran (\d+) tests", output, re.MULTILINE)) >= 24
    sources = {source_kind(spec) for spec in made}
    assert sources == {"none", "replica", "snapshot"}
    # Those that Cinder's tests wait for; some tests end before their volume is made.
    assert len(made) >= 14
    calls = {
        (method, path.split("/")[2]) for node in cluster.nodes.nodes for method, path in node.calls
    }
    kinds = {"replicas", "snapshots"}
    assert calls >= {(method, kind) for method in ("PUT", "DELETE") for kind in kinds}
    # Some of Cinder's tests leave their volumes; what is left is on the nodes and known.
    known = {one.uuid for one in cluster.provisioner.client.volumes()}
    held = {
        replica.spec.volume_id
        for node in cluster.nodes.nodes
        for replica in node.state.replicas.values()
    }
    assert held == known
