# SPDX-License-Identifier: Apache-2.0
"""The console script: it fails at start with what is wrong."""

import asyncio
import datetime
import shutil
import signal

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from oslo_log import log

from kumo_client import errors
from kumo_node import kernel, main
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import replica, uid


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = FakeMachine(tmp_path, tls_cert_file=tmp_path / "node.pem")
    certificate(tmp_path / "node.pem")
    made.conf()
    monkeypatch.setattr(main, "Node", lambda options: made.start_node())
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(log, "setup", lambda *args: None)
    yield made
    made.kill()


def certificate(path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "storage-1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + text)


def run(machine, *args):
    return main.main([*args, "--config-file", str(machine.root / "node.conf")])


def test_run_serves_what_was_prepared(machine, monkeypatch):
    served, handlers = [], {}

    def fake_run(server, sockets=None):
        served.append(server.config)
        machine.node.replicas.put(uid(1), replica())

    monkeypatch.setattr(uvicorn.Server, "run", fake_run)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    assert run(machine) == 0
    assert set(handlers) == {signal.SIGTERM, signal.SIGINT}
    for number, handler in handlers.items():
        with pytest.raises(SystemExit) as ended:
            handler(number, None)
        assert ended.value.code == 0
    (config,) = served
    assert config.is_ssl
    assert config.port == 443
    assert config.ssl_certfile == str(machine.root / "node.pem")
    assert machine.host.names() == {f"r-{uid(1)}"}


def test_systemd_hears_of_a_server_that_listens(monkeypatch):
    told = []
    monkeypatch.setattr(kernel, "notify", told.append)

    answers = iter([False, True])

    async def startup(server, sockets=None):
        server.started = next(answers)

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    asyncio.run(main.Server(uvicorn.Config("none")).startup())
    assert told == []
    asyncio.run(main.Server(uvicorn.Config("none")).startup())
    assert told == ["READY=1"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda m: (m.root / "node.pem").write_text("none"), "tls_cert_file"),
        (lambda m: (m.root / "node.pem").unlink(), "tls_cert_file"),
        (lambda m: (m.root / "token").unlink(), "token_file"),
        (lambda m: m.host.fail.append(("modprobe", "Module nvmet not found")), "nvmet"),
        (lambda m: setattr(next(iter(m.host.disks.values())), "signatures", ["xfs"]), "xfs"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_what_is_wrong_is_said_at_start(machine, capsys, command, spoil, text):
    spoil(machine)
    assert run(machine, command) == 1
    assert text in capsys.readouterr().err
    assert machine.host.vgs == {}


def test_check_changes_no_disk_and_says_what_run_would_do(machine, capsys, monkeypatch):
    assert run(machine, "check") == 0
    assert "vdb will be added" in capsys.readouterr().out
    machine.options["wipe_disks"] = machine.root / "dev/vdb"
    next(iter(machine.host.disks.values())).signatures = ["xfs"]
    machine.conf()
    assert run(machine, "check") == 0
    assert "vdb will be WIPED" in capsys.readouterr().out
    assert machine.host.vgs == {}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(machine, "check") == 1
    assert "lvm is not installed" in capsys.readouterr().err


def test_check_of_a_node_in_service_counts_a_missing_disk_as_no_obstacle(machine, capsys):
    machine.options["pool_layout"] = "disk"
    machine.host.add_disk("vdc")
    machine.options["disks"] += f",{machine.root}/dev/vdc"
    machine.conf()
    assert run(machine, "check") == 0
    assert "vdc will get a pool of its own" in capsys.readouterr().out
    machine.start()
    machine.reboot()
    machine.host.unplug("vdc")
    assert run(machine, "check") == 0
    assert "vdc is missing: there is no such device; the node starts" in capsys.readouterr().out


def test_a_configuration_that_cannot_be_read(tmp_path, capsys):
    assert main.main(["--config-file", str(tmp_path / "none.conf")]) == 1
    assert "none.conf" in capsys.readouterr().err


def test_tls_that_is_right_passes(machine):
    main.check_tls(machine.conf())
    machine.options["tls_key_file"] = machine.root / "none"
    with pytest.raises(errors.ConfigError):
        main.check_tls(machine.conf())
