# SPDX-License-Identifier: Apache-2.0
"""What is checked before anything is served: configuration, tokens, database, certificates."""

import json
import logging

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from kumo_client import errors, request_id
from kumo_provisioner import app, auth, conf, logs, main, nodes
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.worker import Worker


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nlisten_port = many\n",
        "[nodes]\nbudget = 1000\n",
        "[reconcile]\ninterval = -1\n",
        "[placement]\nthin_oversubscription = 0.5\n",
        "no section at all",
    ],
)
def test_wrong_values_are_told_at_start(tmp_path, text, capsys):
    path = tmp_path / "wrong.conf"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match="the configuration is wrong"):
        conf.load([str(path)])
    assert main.main(["--config-file", str(path)]) == 1
    assert capsys.readouterr().err.startswith("kumo-provisioner: the configuration is wrong")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        conf.load([str(tmp_path / "none.conf")])


def test_every_option_has_help():
    for _, options in conf.list_opts():
        assert all(len(option.help) > 20 for option in options)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"tokens": []}',
        '{"tokens": [{"name": "a", "role": "king", "sha256": "00"}]}',
        '{"tokens": [{"name": "a"}]}',
        '{"tokens": 5}',
    ],
)
def test_wrong_token_files(tmp_path, content):
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(errors.ConfigError, match="token file"):
        auth.Tokens.load(str(path))


def test_every_token_of_the_file_counts(tmp_path):
    path = tmp_path / "tokens.json"
    entries = [
        {"name": name, "role": role, "sha256": auth.digest(name).upper()}
        for name, role in (("a", "admin"), ("b", "monitor"))
    ]
    path.write_text(json.dumps({"tokens": entries}))
    tokens = auth.Tokens.load(str(path))
    assert tokens.identify("bearer b").role == "monitor"
    with pytest.raises(errors.UnauthorizedError):
        tokens.identify("Bearer c")


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_wrong_node_tokens(tmp_path, content):
    path = tmp_path / "node.token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.ConfigError, match="token_file"):
        nodes.read_token(str(path))


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "nonsense", "sqlite:////no/such/dir/x.db"]
)
def test_databases_that_cannot_be_used(url):
    with pytest.raises(errors.ConfigError):
        Database(url).upgrade()


def test_migrations_make_what_the_models_say(core):
    with core.db.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, models.Base.metadata) == []


def test_sqlite_is_set_up_to_survive(core):
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}
    with core.db.read() as session:
        for name, value in wanted.items():
            assert session.scalar(sqlalchemy.text(f"PRAGMA {name}")) == value


def test_a_second_provisioner_on_the_same_file_is_refused(core, tmp_path):
    core.db.claim()
    second = Database(f"sqlite:///{tmp_path}/provisioner.db")
    with pytest.raises(errors.ConfigError, match="another provisioner"):
        second.claim()
    second.close()
    core.db.close()
    second.claim()
    second.close()
    with pytest.raises(errors.ConfigError, match="No such file"):
        Database("sqlite:////no/such/dir/x.db").claim()


def test_a_write_that_fails_is_rolled_back(core):
    def failing():
        with core.db.write() as session:
            session.add(models.Host(uuid="h", nqn="nqn.h"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    with core.db.read() as session:
        assert session.get(models.Host, "h") is None


def test_locks_are_taken_in_order_and_given_back():
    locks = Locks(0)
    with locks.hold("b", "a", "a"):
        assert locks.held() == 2
        with pytest.raises(errors.BusyError, match="at work on a"), locks.hold("c", "a"):
            pytest.fail("the lock was free")
        assert locks.held() == 2
    assert locks.held() == 0


ADDRESS = nodes.Address("id", ("10.0.0.1", "fd00::1"), 443)


def test_addresses():
    assert ADDRESS.urls() == ["https://10.0.0.1:443", "https://[fd00::1]:443"]
    assert str(ADDRESS) == "id"
    assert str(nodes.Address("", ("a",), 1)) == "https://a:1"


@pytest.mark.parametrize(
    ("given", "answered", "transient", "unknown"),
    [
        (errors.CommunicationError("gone"), errors.BackendUnavailableError, True, True),
        (errors.BackendUnavailableError("lvm"), errors.BackendUnavailableError, True, True),
        (errors.InternalError("bug"), errors.BackendUnavailableError, False, True),
        (errors.RemoteError("odd", remote_code="Odd"), errors.BackendUnavailableError, False, True),
        (errors.UnauthorizedError("no"), errors.NotAvailableError, False, False),
        (errors.ForbiddenError("no"), errors.NotAvailableError, False, False),
        (errors.InvalidInputError("no"), errors.NotAvailableError, False, False),
        (errors.ProtocolError("html"), errors.NotAvailableError, False, False),
        (errors.NoSpaceError("full"), errors.NoSpaceError, False, False),
        (errors.BusyError("lock"), errors.BusyError, True, False),
    ],
)
def test_errors_of_nodes_become_ours(given, answered, transient, unknown):
    error = nodes.translate(given, ADDRESS)
    assert type(error) is answered
    assert error.transient is transient
    assert nodes.Outcome(error=error).unknown is unknown
    assert "id" in error.description


@pytest.fixture
def real_nodes(tmp_path):
    options = conf.make()
    options([], default_config_files=[])
    (tmp_path / "node.token").write_text("node-token\n")
    options.set_override("token_file", str(tmp_path / "node.token"), group="nodes")
    made = nodes.Nodes(options)
    yield made
    made.close()


def test_clients_are_made_once_and_errors_are_outcomes(real_nodes):
    assert real_nodes.client(ADDRESS) is real_nodes.client(ADDRESS)
    assert real_nodes.client(ADDRESS) is not real_nodes.client(ADDRESS, probing=True)

    def broken(node):
        raise KeyError("a defect")

    def refused(node):
        raise errors.NoSpaceError("full")

    with request_id.use(None) as current:
        outcomes = real_nodes.call_all(
            {
                "good": (ADDRESS, lambda node: request_id.current()),
                "broken": (ADDRESS, broken),
                "refused": (ADDRESS, refused),
            }
        )
    assert outcomes["good"].value == current
    assert outcomes["broken"].unknown
    assert isinstance(outcomes["refused"].error, errors.NoSpaceError)


def test_a_missing_authority_is_told(real_nodes, tmp_path):
    options = conf.make()
    options([], default_config_files=[])
    options.set_override("token_file", str(tmp_path / "node.token"), group="nodes")
    options.set_override("ca_file", str(tmp_path / "none.pem"), group="nodes")
    with pytest.raises(errors.ConfigError, match="does not exist"):
        nodes.Nodes(options)


def test_a_broken_certificate_is_told(tmp_path):
    (tmp_path / "bad.pem").write_text("nothing")
    options = conf.make()
    options([], default_config_files=[])
    for path in ("bad.pem", "none.pem"):
        options.set_override("tls_cert_file", str(tmp_path / path), group="server")
        with pytest.raises(errors.ConfigError, match="tls_cert_file"):
            main._check_tls(options)


def test_openapi_is_printed(capsys):
    assert main.main(["openapi"]) == 0
    assert json.loads(capsys.readouterr().out)["info"]["title"] == "Kumo provisioner"


def test_each_record_has_the_request_id_and_no_secret(monkeypatch):
    before = logging.getLogRecordFactory()
    root = logging.getLogger()
    handler = logging.StreamHandler()
    monkeypatch.setattr(logs.log, "setup", lambda *_: root.addHandler(handler))
    try:
        options = conf.make()
        options([], project="x", default_config_files=[])
        logs.setup(options, secrets=["hush"])
        with request_id.use(None) as current:
            record = logging.getLogger("x").makeRecord(
                "x", logging.INFO, "f", 1, "token is %s", ("hush",), None
            )
        assert record.request_id == current
        assert handler.filter(record)
        assert "hush" not in record.getMessage()
    finally:
        logging.setLogRecordFactory(before)
        root.removeHandler(handler)
        for other in root.handlers:
            other.filters = [
                one for one in other.filters if type(one).__module__ != logs.redact.__name__
            ]


def test_the_worker_outlives_a_defect_and_stops(core, monkeypatch):
    core.conf.set_override("probe_interval", 0.2, group="reconcile")
    seen = []

    def broken(_core):
        seen.append(request_id.current())
        raise ZeroDivisionError

    monkeypatch.setattr("kumo_provisioner.services.probing.probe", broken)
    monkeypatch.setattr("kumo_provisioner.worker.SOAK_SECONDS", 0.01)
    worker = Worker(core)
    worker.start()
    while len(seen) < 4:
        core.wake.set()
        worker._stopping.wait(0.01)
    worker.stop()
    assert not any(thread.is_alive() for thread in worker._threads)
    assert all(seen)
    assert len(set(seen)) > 1


def test_the_description_of_the_api_needs_no_configuration():
    assert app.describe().openapi()["openapi"].startswith("3.")
