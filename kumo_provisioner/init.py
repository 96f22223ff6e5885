# SPDX-License-Identifier: Apache-2.0
"""``kumo-provisioner init``: a private authority, certificates, tokens and configuration files.

It can be run again, for instance to add a node: what exists is kept, except that a certificate
is made anew when it does not cover the names asked for.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
import pathlib
import re
import secrets
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kumo_client import errors
from kumo_provisioner import auth, conf, keys

CA_DAYS = 3650
# Clients may refuse server certificates of more than 825 days.
CERTIFICATE_DAYS = 820
_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--directory", required=True, help="where the files are made")
    parser.add_argument(
        "--address",
        required=True,
        nargs="+",
        metavar="NAME_OR_IP",
        help="names and addresses by which clients reach the provisioner",
    )
    parser.add_argument(
        "--node",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME_OR_IP",
        help="storage nodes, each by the address with which it will be registered",
    )
    parser.add_argument(
        "--client",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="clients that get a certificate, for [server] client_certificates",
    )
    parser.add_argument("--port", type=int, default=conf.DEFAULT_PORT, help="port of the API")


def run(arguments: argparse.Namespace) -> None:
    """Make what is missing.

    :raises ConfigError: when a name is wrong or a file cannot be written.
    """
    for name in (*arguments.address, *arguments.node, *arguments.client):
        if not _is_address(name) and not _NAME.match(name):
            raise errors.ConfigError(f"{name!r} is neither a host name nor an IP address")
    if not 0 < arguments.port < 65536:
        raise errors.ConfigError(f"{arguments.port} is no TCP port")
    directory = pathlib.Path(arguments.directory).absolute()
    try:
        make(directory, arguments.address, arguments.node, arguments.port, arguments.client)
    except OSError as exc:
        raise errors.ConfigError(f"{exc.filename or directory}: {exc.strerror}") from exc
    print(f"Certificates, tokens and configuration files are in {directory}.")
    print(f"Start the provisioner:  kumo-provisioner --config-file {directory}/provisioner.conf")
    print(f"Use the kumo command:   . {directory}/client.env")
    for name in arguments.node:
        print(
            f"On node {name}: copy nodes/{name}.conf to /etc/kumo/node.conf, nodes/{name}.pem to "
            "/etc/kumo/node.pem, and node.token, heartbeat.token and ca.pem to /etc/kumo; then set "
            "disks and portals."
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    # A zone (fe80::1%eth0) has no place in a certificate or a file name.
    return "%" not in name


def make(
    directory: pathlib.Path,
    addresses: Sequence[str],
    nodes: Sequence[str],
    port: int,
    clients: Sequence[str] = (),
) -> None:
    """Make all files of an installation."""
    for path in (directory, directory / "nodes"):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    authority = Authority(directory)
    authority.certify(directory / "provisioner.pem", addresses)
    _token(directory / "admin.token")
    _token(directory / "node.token")
    _token(directory / "heartbeat.token")
    _token_file(directory)
    _keep(directory / "jwt-keys.json", keys.dump([keys.new_key()]))
    _keep(directory / "provisioner.conf", _provisioner_conf(directory, port))
    url_host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    _keep(directory / "client.env", _client_env(directory, f"https://{url_host}:{port}"))
    for name in nodes:
        authority.certify(directory / "nodes" / f"{name}.pem", [name])
        url = f"https://{url_host}:{port}"
        _keep(directory / "nodes" / f"{name}.conf", _node_conf(name, url))
    for name in clients:
        (directory / "clients").mkdir(mode=0o700, exist_ok=True)
        authority.certify(directory / "clients" / f"{name}.pem", [name], client=True)


class Authority:
    """A private certificate authority in a directory: ``ca.pem`` and ``ca-key.pem``."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._certificate_path = directory / "ca.pem"
        key_path = directory / "ca-key.pem"
        if not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            write(key_path, _key_pem(key))
            write(self._certificate_path, _pem(_self_signed(key)), mode=0o644)
        self._key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        self._certificate = x509.load_pem_x509_certificate(self._certificate_path.read_bytes())

    def certify(self, path: pathlib.Path, names: Sequence[str], *, client: bool = False) -> None:
        """Make certificate and key for these names in one file, unless they are there.

        :param client: of a client instead of a server.
        """
        if path.exists() and set(names) <= _names_of(path):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)  # noqa: S101 - made above
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        certificate = (
            _builder(names[0], key, CERTIFICATE_DAYS)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .sign(self._key, hashes.SHA256())
        )
        write(path, _pem(certificate) + _key_pem(key))


def _builder(name: str, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # RFC 5280 allows 64 characters in a common name; the alternative names are what counts.
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(common)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = f"Kumo private authority {secrets.token_hex(4)}"
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, key, CA_DAYS)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(usage, True)
        .sign(key, hashes.SHA256())
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(path: pathlib.Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(entry.value) for entry in found}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write(path: pathlib.Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file completely or not at all; never readable for others, not even for a moment."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.chmod(mode)
    part.replace(path)


def _keep(path: pathlib.Path, text: str) -> None:
    if not path.exists():
        write(path, text.encode())


def _token(path: pathlib.Path) -> None:
    _keep(path, secrets.token_urlsafe(32) + "\n")


def _token_file(directory: pathlib.Path) -> None:
    entries = []
    for name, role in (("admin", auth.ADMIN), ("heartbeat", auth.NODE)):
        token = (directory / f"{name}.token").read_text().strip()
        entries.append({"name": name, "role": role, "sha256": auth.digest(token)})
    _keep(directory / "tokens.json", json.dumps({"tokens": entries}, indent=2) + "\n")


def _provisioner_conf(directory: pathlib.Path, port: int) -> str:
    return f"""[server]
listen_port = {port}
tls_cert_file = {directory}/provisioner.pem
token_file = {directory}/tokens.json
jwt_key_file = {directory}/jwt-keys.json

[database]
connection = sqlite:///{directory}/provisioner.db

[nodes]
token_file = {directory}/node.token
ca_file = {directory}/ca.pem
"""


def _client_env(directory: pathlib.Path, url: str) -> str:
    return f"""export KUMO_URL={url}
export KUMO_TOKEN_FILE={directory}/admin.token
export KUMO_CA_FILE={directory}/ca.pem
"""


def _node_conf(name: str, url: str) -> str:
    return f"""[DEFAULT]
hostname = {name}
listen_port = 443
tls_cert_file = /etc/kumo/node.pem
token_file = /etc/kumo/node.token
provisioner_urls = {url}
provisioner_token_file = /etc/kumo/heartbeat.token
provisioner_ca_file = /etc/kumo/ca.pem
# The disks given to Kumo, best by their names in /dev/disk/by-id, separated by commas.
disks =
# Where hosts reach the volumes, for example tcp://192.0.2.11:4420
portals =
"""
