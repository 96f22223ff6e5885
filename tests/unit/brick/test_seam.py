# SPDX-License-Identifier: Apache-2.0
"""os-brick's mapping and list name our classes; an os-brick that is not known stays as it is."""

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import types

import pytest
from os_brick.initiator.connectors import nvmeof

from os_brick_nvmeof import seam

OURS = "os_brick_nvmeof.seam.KumoNVMeOFConnector"
ANNOUNCING = "os_brick_nvmeof.seam.AnnouncingConnector"
ISCSI = "os_brick.initiator.connectors.iscsi.ISCSIConnector"


def factory_module():
    """As os_brick.initiator.connector is."""
    module = types.ModuleType(seam.CONNECTOR)
    module._connector_mapping_linux = {"ISCSI": ISCSI, "NVME": seam.STOCK, "NVMEOF": seam.STOCK}
    module.unix_connector_list = [ISCSI, seam.STOCK, "other"]
    return module


@pytest.fixture
def release(monkeypatch):
    """Sets what os-brick says its release is; None when it is not installed."""

    def put(text):
        def version(_name):
            if text is None:
                raise importlib.metadata.PackageNotFoundError("os-brick")
            return text

        monkeypatch.setattr(importlib.metadata, "version", version)

    return put


@pytest.fixture
def warnings(caplog):
    def read():
        return [
            record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
        ]

    return read


def test_the_factory_and_the_list_name_our_classes(monkeypatch, warnings):
    module = factory_module()
    listed = module.unix_connector_list
    monkeypatch.setitem(sys.modules, seam.CONNECTOR, module)
    for _ in range(2):
        seam.install()
        assert module._connector_mapping_linux == {"ISCSI": ISCSI, "NVME": OURS, "NVMEOF": OURS}
        assert module.unix_connector_list is listed
        assert listed == [ISCSI, ANNOUNCING, "other"]
    assert warnings() == []


def no_mapping(module):
    del module._connector_mapping_linux


def no_list(module):
    module.unix_connector_list = tuple(module.unix_connector_list)


def another_connector(module):
    module._connector_mapping_linux["NVME"] = "vendor.Connector"


def not_listed(module):
    module.unix_connector_list.remove(seam.STOCK)


@pytest.mark.parametrize("change", [no_mapping, no_list, another_connector, not_listed])
def test_another_shape_stays_as_it_is(monkeypatch, warnings, change):
    module = factory_module()
    change(module)
    before = repr(vars(module))
    monkeypatch.setitem(sys.modules, seam.CONNECTOR, module)
    seam.install()
    assert repr(vars(module)) == before
    assert "The Kumo connector is not used" in warnings()[0]


@pytest.mark.parametrize("text", ["6.9.1", "8.0.0", "5.2.4", "unknown", "5", None])
def test_another_release_stays_as_it_is(monkeypatch, warnings, release, text):
    release(text)
    module = factory_module()
    monkeypatch.setitem(sys.modules, seam.CONNECTOR, module)
    seam.install()
    assert module._connector_mapping_linux["NVMEOF"] == seam.STOCK
    assert "The Kumo connector is not used" in warnings()[0]


@pytest.mark.parametrize("text", ["6.10.0", "6.13.0", "7.1.1", "7.9.0.dev3"])
def test_known_releases(release, text):
    release(text)
    seam.check_version()


class FakeImport:
    """Finds a module of that name which is made by ``content``."""

    def __init__(self, content):
        self.content = content

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == seam.CONNECTOR else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        vars(module).update(self.content)


@pytest.fixture
def later(monkeypatch):
    """The factory is not imported yet; it comes with the content given."""

    def put(content):
        monkeypatch.delitem(sys.modules, seam.CONNECTOR, raising=False)
        package = importlib.import_module("os_brick.initiator")
        monkeypatch.setattr(package, "connector", None, raising=False)
        monkeypatch.setattr(sys, "meta_path", [FakeImport(content), *sys.meta_path])

    yield put
    sys.modules.pop(seam.CONNECTOR, None)


def test_a_factory_that_is_imported_later_is_changed_then(later, warnings):
    later(vars(factory_module()) | {"__loader__": None, "__spec__": None})
    finders = list(sys.meta_path)
    seam.install()
    assert len(sys.meta_path) == len(finders) + 1
    assert importlib.util.find_spec("os_brick.utils") is not None
    module = importlib.import_module(seam.CONNECTOR)
    assert module._connector_mapping_linux["NVMEOF"] == OURS
    assert module.unix_connector_list[1] == ANNOUNCING
    assert sys.meta_path == finders
    assert warnings() == []


def test_a_factory_of_another_shape_that_is_imported_later(later, warnings):
    later({"unix_connector_list": []})
    seam.install()
    module = importlib.import_module(seam.CONNECTOR)
    assert module.unix_connector_list == []
    assert "has no mapping" in warnings()[0]


@pytest.mark.parametrize("name", [seam.FACTORY, seam.ANNOUNCING])
def test_the_names_are_looked_up_when_a_connector_is_made(name):
    assert name not in vars(seam)
    assert issubclass(getattr(seam, name), nvmeof.NVMeOFConnector)
    assert getattr(seam, name).__name__ == name


def test_without_our_class_stock_is_used(monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "os_brick_nvmeof.connector", None)
    assert getattr(seam, seam.FACTORY) is nvmeof.NVMeOFConnector
    assert "The Kumo connector is not used" in warnings()[0]


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = seam.Nothing


def test_stock_may_ask_for_an_agent(caplog):
    caplog.set_level(logging.DEBUG)
    seam.NVMeOFAgent.ensure_running(None)
    assert "kumo-agent, where it runs" in caplog.text
