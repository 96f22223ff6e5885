# SPDX-License-Identifier: Apache-2.0
"""An old copy of the database is put back under the real provisioner."""

import contextlib
import json
import shutil
import sqlite3
import time

import pytest

from kumo_client import errors
from tests.functional.provisioner import common


def copy(provisioner, target):
    source = provisioner.directory / "provisioner.db"
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def put_back(provisioner, saved):
    """As the operations guide says."""
    path = provisioner.directory / "provisioner.db"
    provisioner.stop()
    for name in ("provisioner.db-wal", "provisioner.db-shm"):
        (path.parent / name).unlink(missing_ok=True)
    shutil.copy(saved, path)
    provisioner.start()


def wait_for(seconds, done):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def aged(provisioner, fleet, tmp_path):
    """The provisioner over a copy that knows ``known`` but neither its publication nor ``new``."""
    # Everything comes due at once, again and again.
    provisioner.configure({"reconcile": {"interval": "1", "full_interval": "1"}})
    provisioner.restart()
    for node in fleet.add(3):
        provisioner.register(node)
    known = common.made_volume(provisioner.client, 2)
    common.publish(provisioner.client, known)
    common.unpublish(provisioner.client, known)
    copy(provisioner, tmp_path / "copy.db")
    provisioner.restart()
    common.publish(provisioner.client, known)
    new = common.made_volume(provisioner.client)
    common.publish(provisioner.client, new)
    before = fleet.objects(), fleet.exports()
    put_back(provisioner, tmp_path / "copy.db")
    return known, new, before


def test_nothing_is_taken_away_until_it_is_accepted(provisioner, fleet, aged):
    known, new, before = aged
    client = provisioner.client
    # The first thing that anybody asks for is a deletion.
    with pytest.raises(errors.OutdatedRecordError, match="old copy"):
        provisioner.new_client(budget=2).delete_volume(known)
    for _ in range(2):
        provisioner.reconcile()
    # Looks of the background go on.
    time.sleep(2)
    assert (fleet.objects(), fleet.exports()) == before
    found = client.restored()
    assert found.doubt == "older"
    assert {one.volume_id for one in found.differences if one.action == "unexport"} == {known}
    assert {one.volume_id for one in found.differences if one.action == "unknown"} == {new}
    assert "kumo restored accept" in json.dumps(client.session.request("GET", "/readyz"))
    assert "kumo_database_doubted 1\n" in client.metrics()
    assert "database.doubted" in {one.type for one in client.events().events}

    answer = client.accept_restored("keep")
    assert (answer.exports_kept, answer.left) == (1, [])
    assert client.restored().doubt == ""
    for _ in range(2):
        provisioner.reconcile()
    assert (fleet.objects(), fleet.exports()) == before
    assert client.volume(known).published_hosts == ["host-1"]
    # It goes on.
    common.unpublish(client, known)
    client.delete_volume(known)
    provisioner.reconcile()
    (left,) = client.garbage()
    assert fleet.objects() == {left.uuid}


def test_accepted_without_the_exports(provisioner, fleet, aged):
    known, _, before = aged
    provisioner.reconcile()
    client = provisioner.client
    client.accept_restored("drop")
    legs = {one.uuid for one in client.volume(known).location}
    wait_for(30, lambda: not {one for one in fleet.exports() if one[0] in legs})
    assert fleet.objects() == before[0]


def test_a_restart_or_a_crash_is_no_doubt(provisioner, fleet):
    for node in fleet.add(2):
        provisioner.register(node)
    uid = common.made_volume(provisioner.client, 2)
    provisioner.kill()
    provisioner.start()
    common.publish(provisioner.client, uid)
    provisioner.restart()
    common.unpublish(provisioner.client, uid)
    provisioner.client.delete_volume(uid)
    assert provisioner.client.restored().doubt == ""
    assert (fleet.objects(), fleet.exports()) == (set(), set())
