# SPDX-License-Identifier: Apache-2.0
"""An operator says that a copy of the database was put back."""

import pytest

from kumo_provisioner import main, reconcile, stamps
from kumo_provisioner.db.engine import Database
from kumo_provisioner.reconcile.accept import accept
from kumo_provisioner.services import (
    hosts,
)
from tests.unit.provisioner.conftest import HOST
from tests.unit.provisioner.restoring import KEEP, a_site, away, doubt, made
from tests.unit.provisioner.stories import published


@pytest.fixture
def site(tmp_path, conf, empty_database):
    with a_site(tmp_path, empty_database, conf) as made:
        yield made


def configured(site, tmp_path):
    path = tmp_path / "provisioner.conf"
    path.write_text(f"[database]\nconnection = sqlite:///{site.path}\n")
    return ["db", "restored", "--config-file", str(path)]


def test_an_operator_says_that_a_copy_was_put_back(site, tmp_path, capsys):
    """So soon after the copy was made that nobody could tell."""
    core = site.core
    uid = made(core)
    hosts.probe(core, HOST)
    site.copy()
    published(core, uid)
    site.replace()
    assert main.main(configured(site, tmp_path)) == 0
    assert "kumo restored accept" in capsys.readouterr().out
    before = site.state()
    core = site.start()
    reconcile.run(core)
    assert (doubt(core), site.state()) == (stamps.OLDER, before)
    assert accept(core, KEEP).exports_kept == 1
    reconcile.run(core)
    assert site.state() == before


def test_that_needs_a_database_that_nobody_uses(site, tmp_path, capsys):
    site.core.db.claim()
    assert main.main(configured(site, tmp_path)) == 1
    assert "another provisioner uses the database" in capsys.readouterr().err


def test_a_database_that_cannot_be_used_is_told(site, tmp_path, capsys, monkeypatch):
    site.core.close()
    monkeypatch.setattr(Database, "run", lambda *_: away(None))
    assert main.main(configured(site, tmp_path)) == 1
    assert "it is away" in capsys.readouterr().err
