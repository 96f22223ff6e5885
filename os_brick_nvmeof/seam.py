# SPDX-License-Identifier: Apache-2.0
"""How os-brick comes to use our connector: its factory and its list name our class instead.

os-brick's NVMe-oF connector imports ``os_brick.initiator.connectors.nvmeof_agent`` if there is one
(os_brick/initiator/connectors/nvmeof.py); ours calls :func:`install`. Mostly that happens while
``os_brick.initiator.connector`` is being imported and has its mapping already; when the connector
is imported alone, the mapping is changed once it is there.

``nvmeof.NVMeOFConnector`` itself stays what it is: stock calls ``super(NVMeOFConnector, self)``.
The names written into the mapping are looked up when a connector is made, by
:func:`__getattr__` below, so that a class of ours that cannot be loaded leaves stock in use.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

from oslo_log import log as logging

LOG = logging.getLogger(__name__)

CONNECTOR = "os_brick.initiator.connector"
STOCK = "os_brick.initiator.connectors.nvmeof.NVMeOFConnector"
# Classes of os_brick_nvmeof.connector: for the factory, and for what a host tells of itself.
FACTORY = "KumoNVMeOFConnector"
ANNOUNCING = "AnnouncingConnector"
PROTOCOLS = ("NVME", "NVMEOF")
# Releases that the tests run against, and those between them.
OLDEST = (6, 10)
BEFORE = (8, 0)


class UnknownOsBrickError(Exception):
    """This os-brick is not shaped as those that we know."""


class NVMeOFAgent:
    """What stock calls after it attached a replicated volume."""

    @staticmethod
    def ensure_running(connector: Any) -> None:
        """Nothing: ``kumo-agent`` is a service of its own, never started by a connector, and the
        kernel's events tell it of the new array."""
        LOG.debug("kumo-agent, where it runs, keeps this volume redundant")


def install() -> None:
    """Make os-brick use our connector; with an os-brick that we do not know, warn and leave it."""
    try:
        check_version()
        module = sys.modules.get(CONNECTOR)
        if module is None:
            sys.meta_path.insert(0, _AfterImport())
        else:
            patch(module)
    except UnknownOsBrickError as error:
        _warn(error)


def patch(module: ModuleType) -> None:
    """Put our names where stock's are, in ``os_brick.initiator.connector``. Repeatable.

    :raises UnknownOsBrickError: before anything is changed.
    """
    mapping = getattr(module, "_connector_mapping_linux", None)
    names = getattr(module, "unix_connector_list", None)
    if not isinstance(mapping, dict) or not isinstance(names, list):
        raise UnknownOsBrickError(f"{CONNECTOR} has no mapping or list of connectors")
    ours, announcing = f"{__name__}.{FACTORY}", f"{__name__}.{ANNOUNCING}"
    if any(mapping.get(protocol) not in (STOCK, ours) for protocol in PROTOCOLS):
        raise UnknownOsBrickError(f"{CONNECTOR} names another connector for NVMe-oF")
    if STOCK not in names and announcing not in names:
        raise UnknownOsBrickError(f"{CONNECTOR} does not list the connector for NVMe-oF")
    mapping.update(dict.fromkeys(PROTOCOLS, ours))
    # In place and at the same index: stock may be walking through the list just now.
    names[:] = [announcing if name == STOCK else name for name in names]
    LOG.debug("os-brick uses the Kumo connector for NVMe-oF")


def check_version() -> None:
    """Whether this is a release of os-brick that we know.

    :raises UnknownOsBrickError: naming the release.
    """
    try:
        text = importlib.metadata.version("os-brick")
        release = tuple(int(part) for part in text.split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise UnknownOsBrickError(f"the release of os-brick cannot be told: {error}") from error
    if not OLDEST <= release < BEFORE:
        raise UnknownOsBrickError(f"os-brick {text} is not one that this connector knows")


def __getattr__(name: str) -> Any:
    """The classes by the names that are in the mapping: ours, or stock's if ours cannot be had."""
    if name not in (FACTORY, ANNOUNCING):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("os_brick_nvmeof.connector"), name)
    except Exception as error:  # noqa: BLE001 - whatever it is, volumes of others must attach
        _warn(error)
        return importlib.import_module(STOCK.rpartition(".")[0]).NVMeOFConnector


def _warn(error: Exception) -> None:
    LOG.warning(
        "The Kumo connector is not used, and os-brick's own stays (%s: %s); volumes of Kumo attach "
        "without its checks. Install releases of cinder-kumo and os-brick that know each other",
        type(error).__name__,
        error,
    )


class _AfterImport(importlib.abc.MetaPathFinder):
    """Waits for the import of os-brick's factory, changes its mapping then, and goes."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != CONNECTOR:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patching(spec.loader)
        return spec


class _Patching(importlib.abc.Loader):
    """Loads as the real loader does, then patches."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._real.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        try:
            patch(module)
        except UnknownOsBrickError as error:
            _warn(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
