# SPDX-License-Identifier: Apache-2.0
"""The driver has the methods of the interfaces it claims, argument by argument."""

import inspect

import pytest
from cinder import interface
from cinder.interface import volume_driver, volume_group_driver
from cinder.volume import driver as cinder_driver

from cinder_kumo.driver import KumoVolumeDriver
from tests.unit.driver import signatures

CLAIMED = [volume_driver.VolumeDriverCore, volume_group_driver.VolumeGroupDriver]


@pytest.mark.parametrize("claimed", CLAIMED, ids=lambda cls: cls.__name__)
def test_driver_has_the_signatures_of_the_interface(claimed):
    assert signatures.violations(KumoVolumeDriver, claimed) == []


def test_every_abstract_method_of_the_base_class_is_there():
    assert not inspect.isabstract(KumoVolumeDriver)
    assert issubclass(KumoVolumeDriver, cinder_driver.BaseVD)


def test_driver_is_registered():
    assert KumoVolumeDriver in interface._volume_register


def test_interface_has_methods_to_compare():
    found = signatures.methods(volume_driver.VolumeDriverCore)
    assert {"do_setup", "initialize_connection", "extend_volume", "retype"} <= set(found)
    assert len(found) > 20


class Interface:
    """Stands for an interface in the tests of the check."""

    __module__ = "cinder.interface.example"

    def attach(self, volume, connector, initiator_data=None):
        """Three parameters, one with a default."""

    def ready(self):
        """Read as an attribute by some."""


class Good:
    def attach(self, volume, connector, initiator_data=None, **kwargs):
        """More, but none that must be given."""

    @property
    def ready(self):
        return True


def attach_renamed(self, vol, connector, initiator_data=None):
    """Other name."""


def attach_swapped(self, connector, volume, initiator_data=None):
    """Other order."""


def attach_default(self, volume, connector, initiator_data=()):
    """Other default."""


def attach_no_default(self, volume, connector, initiator_data):
    """No default."""


def attach_short(self, volume, connector):
    """One less."""


def attach_keyword(self, volume, connector, *, initiator_data=None):
    """Keyword only."""


def attach_more(self, volume, connector, initiator_data=None, *, force):
    """One more that must be given."""


def test_check_accepts_what_fits():
    assert signatures.violations(Good, Interface) == []


@pytest.mark.parametrize(
    "method",
    [
        attach_renamed,
        attach_swapped,
        attach_default,
        attach_no_default,
        attach_short,
        attach_keyword,
        attach_more,
        None,
        property(lambda self: None),
    ],
    ids=lambda method: getattr(method, "__name__", type(method).__name__),
)
def test_check_finds_what_is_wrong(method):
    wrong = type("Wrong", (Good,), {"attach": method})
    lines = signatures.violations(wrong, Interface)
    assert len(lines) == 1
    assert lines[0].startswith("attach: ")


def test_check_finds_a_class_with_nothing():
    assert signatures.violations(object, Interface) == ["attach: is missing", "ready: is missing"]
