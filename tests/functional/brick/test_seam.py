# SPDX-License-Identifier: Apache-2.0
"""A wheel beside a real os-brick: its factory gives our connector, until it is uninstalled."""

import pytest

STOCK = "os_brick.initiator.connectors.nvmeof.NVMeOFConnector"
OURS = "os_brick_nvmeof.connector.KumoNVMeOFConnector"

# Who imports what first: nova-compute and cinder-volume the factory, others a connector.
FIRST = (
    "os_brick.initiator.connector",
    "os_brick.initiator.connectors.nvmeof",
    "os_brick.initiator.connectors.lightos",
    "os_brick_nvmeof.connector",
)

FACTORY = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
from os_brick.initiator import connector
from os_brick.initiator.connectors import nvmeof

def name(cls):
    return f"{cls.__module__}.{cls.__qualname__}"

def made(protocol):
    return name(type(connector.InitiatorConnector.factory(protocol, "sudo")))

print(json.dumps({
    "file": connector.__file__,
    "made": sorted({made(protocol) for protocol in ("NVMEOF", "nvmeof", "NVME")}),
    "iscsi": made("ISCSI"),
    "alias": name(connector.NVMeOFConnector),
    "stock": name(nvmeof.NVMeOFConnector),
    "listed": len(connector.unix_connector_list),
}))
"""

PROPERTIES = """
import json
from unittest import mock
from os_brick.initiator import connector
from os_brick.initiator.connectors import nvmeof, lightos
from os_brick.privileged import nvmeof as root

stock = nvmeof.NVMeOFConnector
with (
    mock.patch.object(stock, "_get_host_uuid", return_value="uuid-of-root"),
    mock.patch.object(stock, "nvme_present", return_value=False),
    mock.patch.object(root, "get_system_uuid", return_value="system"),
    mock.patch.object(lightos.LightOSConnector, "get_connector_properties", return_value={}),
    mock.patch("os_brick.initiator.linuxfc.LinuxFibreChannel.get_fc_wwpns", return_value=[]),
    mock.patch("os_brick.initiator.linuxfc.LinuxFibreChannel.get_fc_wwnns", return_value=[]),
    mock.patch(
        "os_brick.initiator.connectors.iscsi.ISCSIConnector.get_initiator", return_value=None
    ),
):
    found = connector.get_connector_properties("sudo", "10.0.0.1", False, False, host="compute-1")
print(json.dumps(found))
"""


@pytest.mark.parametrize("first", FIRST)
def test_the_factory_gives_our_connector(environment, first):
    found = environment.ask(FACTORY, first)
    assert found["file"].startswith(str(environment.site))
    assert found["made"] == [OURS]
    assert found["iscsi"] == "os_brick.initiator.connectors.iscsi.ISCSIConnector"
    assert found["stock"] == found["alias"] == STOCK


def test_the_host_tells_that_our_connector_is_there(environment):
    found = environment.ask(PROPERTIES)
    assert found["kumo"] == {"version": 1, "abilities": ["freshness"]}
    assert (found["uuid"], found["host"]) == ("uuid-of-root", "compute-1")


def test_uninstalling_leaves_stock(environment, wheel):
    try:
        environment.uninstall("cinder-kumo")
        assert environment.files() == environment.stock_files
        assert environment.ask(FACTORY, FIRST[0])["made"] == [STOCK]
        assert "kumo" not in environment.ask(PROPERTIES)
    finally:
        environment.install(wheel)


def test_another_release_of_os_brick_leaves_ours_in_place(environments):
    environment = environments["7.1.1"]
    environment.install(environment.wheel("6.13.0"))
    try:
        assert environment.ask(FACTORY, FIRST[0])["made"] == [OURS]
    finally:
        environment.install(environment.wheel("7.1.1"))


BROKEN = {
    "another release": (
        "os_brick-{release}.dist-info/METADATA",
        "Version: {release}",
        "Version: 9.0.0",
    ),
    "another shape": (
        "os_brick/initiator/connector.py",
        "unix_connector_list",
        "connectors_of_unix",
    ),
    "our package is broken": ("os_brick_nvmeof/props.py", "KEY =", "raise ValueError\nKEY ="),
    "our package is gone": ("os_brick_nvmeof/seam.py", "import sys", "import no_such_module"),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_what_is_not_known_leaves_stock_in_use(environments, what):
    release = "7.1.1"
    environment = environments[release]
    name, old, new = (text.format(release=release) for text in BROKEN[what])
    path = environment.site / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    listed = "connectors_of_unix" if what == "another shape" else "unix_connector_list"
    script = FACTORY.replace("unix_connector_list", listed)
    try:
        for first in FIRST[:2]:
            assert environment.ask(script, first)["made"] == [STOCK]
        properties = environment.ask(PROPERTIES)
    finally:
        path.write_text(text)
    assert "kumo" not in properties
    assert properties["uuid"] == "uuid-of-root"
