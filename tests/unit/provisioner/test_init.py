# SPDX-License-Identifier: Apache-2.0
"""What ``kumo-provisioner init`` makes, and that it can be repeated."""

import stat

import pytest
from cryptography import x509

from kumo_client import errors
from kumo_provisioner import auth, conf, init, main, nodes
from kumo_provisioner.db.engine import Database


def run(directory, *more):
    command = ["init", "--directory", str(directory), "--address", "10.0.0.1", "kumo.example"]
    return main.main([*command, *more])


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def names(path):
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(entry.value) for entry in found]


def test_files_and_their_modes(tmp_path, capsys):
    directory = tmp_path / "kumo"
    assert run(directory, "--node", "node-1", "::1") == 0
    made = contents(directory)
    assert {str(path.relative_to(directory)) for path in made} == {
        "ca.pem",
        "ca-key.pem",
        "provisioner.pem",
        "provisioner.conf",
        "tokens.json",
        "admin.token",
        "node.token",
        "heartbeat.token",
        "jwt-keys.json",
        "client.env",
        "nodes/node-1.pem",
        "nodes/node-1.conf",
        "nodes/::1.pem",
        "nodes/::1.conf",
    }
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o644 if path.name == "ca.pem" else 0o600), path
    assert names(directory / "provisioner.pem") == ["10.0.0.1", "kumo.example"]
    assert names(directory / "nodes" / "node-1.pem") == ["node-1"]
    token = (directory / "admin.token").read_text().strip()
    printed = capsys.readouterr()
    assert token not in printed.out + printed.err
    assert token.encode() not in (directory / "tokens.json").read_bytes()


def test_certificates_are_signed_by_the_authority(tmp_path):
    run(tmp_path, "--node", "node-1")
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    for name in ("provisioner.pem", "nodes/node-1.pem"):
        certificate = x509.load_pem_x509_certificate((tmp_path / name).read_bytes())
        certificate.verify_directly_issued_by(authority)


def test_what_is_made_can_be_used(tmp_path):
    run(tmp_path, "--port", "9999")
    options = conf.load([str(tmp_path / "provisioner.conf")])
    assert options.server.listen_port == 9999
    tokens = auth.Tokens.load(options.server.token_file)
    token = (tmp_path / "admin.token").read_text().strip()
    assert tokens.identify(f"Bearer {token}") == auth.Identity("admin", "admin")
    assert nodes.read_token(options.nodes.token_file)
    assert main._check_tls(options)[0] == str(tmp_path / "provisioner.pem")
    assert f"KUMO_TOKEN_FILE={tmp_path}/admin.token" in (tmp_path / "client.env").read_text()
    assert main.main(["--config-file", str(tmp_path / "provisioner.conf"), "db", "upgrade"]) == 0
    assert main.main(["db", "upgrade", "--config-file", str(tmp_path / "provisioner.conf")]) == 0
    Database(options.database.connection).upgrade()


def test_repeating_it_keeps_everything_and_adds_nodes(tmp_path):
    run(tmp_path, "--node", "node-1")
    before = contents(tmp_path)
    run(tmp_path, "--node", "node-1", "--node", "node-2")
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert {path.name for path in set(after) - set(before)} == {"node-2.pem", "node-2.conf"}


def test_a_new_address_makes_a_new_certificate_of_the_same_authority(tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    command = ["init", "--directory", str(tmp_path), "--address", "10.0.0.2"]
    assert main.main(command) == 0
    changed = {path.name for path, data in contents(tmp_path).items() if before[path] != data}
    assert changed == {"provisioner.pem"}


@pytest.mark.parametrize("name", ["../evil", "a b", "", "-x/", "a/b"])
def test_wrong_names_are_refused(tmp_path, name, capsys):
    command = ["init", "--directory", str(tmp_path), f"--node={name}", "--address", "h"]
    assert main.main(command) == 1
    assert "neither a host name nor an IP address" in capsys.readouterr().err
    assert contents(tmp_path) == {}


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "below") == 1
    assert "kumo-provisioner:" in capsys.readouterr().err
    with pytest.raises(errors.ConfigError, match="no TCP port"):
        init.run(
            main._parser().parse_args(
                ["init", "--directory", str(tmp_path), "--address", "a", "--port", "0"]
            )
        )
