# SPDX-License-Identifier: Apache-2.0
"""Certificates of clients, over real TLS."""

import http.client
import json
import pathlib
import ssl

import pytest

from kumo_client import errors
from kumo_provisioner.init import Authority
from tests.fakes.provisioner import ProvisionerProcess


def certificate(directory, name):
    """PEM file of a client, by an authority of its own directory."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.pem"
    Authority(directory).certify(path, [name], client=True)
    return path


def status(provisioner, client_file=None):
    """HTTP status of a call with the token; None when TLS came to nothing."""
    context = ssl.create_default_context(cafile=provisioner.ca_file)
    if client_file is not None:
        context.load_cert_chain(client_file)
    connection = http.client.HTTPSConnection("127.0.0.1", provisioner.port, context=context)
    try:
        headers = {"Authorization": f"Bearer {token(provisioner)}"}
        connection.request("GET", "/volumes", headers=headers)
        answer = connection.getresponse()
        json.loads(answer.read())
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return answer.status


def token(provisioner):
    return pathlib.Path(provisioner.directory / "admin.token").read_text().strip()


@pytest.mark.parametrize(
    ("mode", "without", "wrong"),
    [("no", 200, 200), ("optional", 200, None), ("required", None, None)],
)
def test_who_is_served(tmp_path, monkeypatch, mode, without, wrong):
    provisioner = ProvisionerProcess(tmp_path / "kumo")
    mine = certificate(tmp_path / "ours", "client")
    other = certificate(tmp_path / "theirs", "client")
    options = {"client_certificates": mode, "client_ca_file": tmp_path / "ours" / "ca.pem"}
    provisioner.configure({"server": options})
    if mode == "required":
        # The helper asks whether it answers; it needs the certificate for that, too.
        monkeypatch.setattr(provisioner, "new_client", lambda **_: Asking(provisioner, mine))
    provisioner.start()
    try:
        assert status(provisioner, mine) == 200
        assert status(provisioner) == without
        assert status(provisioner, other) == wrong
    finally:
        provisioner.stop()


class Asking:
    """Just enough of a client to wait for the start."""

    def __init__(self, provisioner, client_file):
        self.provisioner, self.client_file = provisioner, client_file

    def info(self):
        if status(self.provisioner, self.client_file) != 200:
            raise errors.CommunicationError("it does not answer yet")


def test_without_the_authority_it_does_not_start(tmp_path):
    provisioner = ProvisionerProcess(tmp_path / "kumo")
    provisioner.configure({"server": {"client_certificates": "required"}})
    with pytest.raises(AssertionError, match="it ended at start"):
        provisioner.start()
    assert "client_ca_file" in provisioner.log_text()
