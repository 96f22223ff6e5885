# SPDX-License-Identifier: Apache-2.0
"""Health endpoints: open to everybody, and honest."""

import sqlite3

import pytest
import sqlalchemy
from sqlalchemy import text
from starlette.testclient import TestClient

from kumo_provisioner import app, auth
from kumo_provisioner.db import schema
from tests.unit.provisioner.test_edge import assert_error


@pytest.fixture
def stranger(web):
    """Somebody without a token."""
    del web.headers["Authorization"]
    return web


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/info"])
def test_open_to_everybody(stranger, path):
    answer = stranger.get(path)
    assert answer.status_code == 200
    assert answer.headers["X-Openstack-Request-Id"].startswith("req-")


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/x", "/0/info", "/volumes"])
def test_nothing_else_is_open(stranger, path):
    assert stranger.get(path).status_code == 401
    assert stranger.post("/healthz").status_code == 401


def test_alive_needs_no_database(stranger, core):
    core.db.close()
    assert stranger.get("/healthz").json()["status"] == "Success"


def test_ready_says_success(stranger):
    assert stranger.get("/readyz").json()["status"] == "Success"


def test_not_ready_while_it_ends(stranger, core):
    core.leaving.set()
    assert_error(stranger.get("/readyz"), "NotReady", 503)
    assert stranger.get("/readyz").json()["details"]["reasons"] == ["it is about to end"]
    assert stranger.get("/healthz").status_code == 200
    core.leaving.clear()
    core.stopping.set()
    assert stranger.get("/readyz").status_code == 503


def test_not_ready_on_another_schema(stranger, core):
    with core.db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    answer = stranger.get("/readyz")
    assert_error(answer, "NotReady", 503)
    assert "schema of the database is 0001" in answer.json()["description"]


def test_not_ready_without_database(stranger, core, monkeypatch):
    def broken(connection):
        error = sqlite3.OperationalError("disk I/O error")
        raise sqlalchemy.exc.OperationalError("SELECT", {}, error)

    monkeypatch.setattr(schema, "current", broken)
    answer = stranger.get("/readyz")
    assert_error(answer, "NotReady", 503)
    assert "database" in answer.json()["details"]["reasons"][0]


def test_not_ready_when_background_work_ended(core, monkeypatch):
    class Ended:
        def __init__(self, _core):
            pass

        def start(self):
            pass

        def stop(self):
            pass

        def dead(self):
            return ["probe"]

    monkeypatch.setattr(app, "Worker", Ended)
    with TestClient(app.make(core, auth.Tokens({}))) as client:
        answer = client.get("/readyz")
    assert answer.json()["details"]["reasons"] == ["the background thread probe has ended"]


class SilentInstances:
    def beating(self):
        return False


def test_not_ready_without_signs_of_life(stranger, core):
    core.instances = SilentInstances()
    try:
        answer = stranger.get("/readyz")
    finally:
        core.instances = None
    assert answer.json()["details"]["reasons"] == ["its signs of life do not reach the database"]
