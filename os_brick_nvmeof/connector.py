# SPDX-License-Identifier: Apache-2.0
"""The connector that os-brick's factory makes for NVMe-oF, in place of its own.

Connection properties with our key are ours; all others go to stock, unchanged. Nova and Cinder
keep properties for as long as a volume is attached, so a volume that the KumoScale driver of
Cinder's tree attached from a Kumo provisioner is recognised when it is detached or grown.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from os_brick import utils
from os_brick.initiator.connectors import nvmeof
from oslo_config import cfg
from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, plain, props, replicated
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.host import CommandError
from os_brick_nvmeof.locks import Locks
from os_brick_nvmeof.privileged import LocalHost

LOG = logging.getLogger(__name__)

# What it can do, as ``abilities`` of POST /host_probe names it.
ABILITIES = ("freshness",)
# Subsystems of a Kumo node have names made of a version 5 UUID (RFC 9562, section 5.5).
_OUR_NQN = re.compile(
    r"nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
    r"[0-9a-f]{12}"
)

Properties = Mapping[str, Any]


class KumoNVMeOFConnector(nvmeof.NVMeOFConnector):
    """Attaches NVMe-oF volumes: ours by ourselves, those of others as stock os-brick does."""

    def connect_volume(self, connection_properties: Properties) -> dict[str, str]:
        """Attach a volume; repeatable. One that fails leaves nothing behind.

        :param connection_properties: as the Cinder driver gives them; not changed.
        :returns: ``type`` ("block") and ``path`` of the device.
        :raises os_brick_nvmeof.errors.KumoBrickError: naming volume, leg, node and portal.
        """
        if not props.is_ours(connection_properties):
            return super().connect_volume(connection_properties)
        return self._attach(connection_properties)

    def disconnect_volume(
        self,
        connection_properties: Properties,
        device_info: Mapping[str, Any] | None = None,
        force: bool = False,
        ignore_errors: bool = False,
    ) -> None:
        """Detach a volume; repeatable.

        :param device_info: what :meth:`connect_volume` answered, if the caller still has it.
        :param force: go on after an error, even if data may be lost, and raise it at the end.
        :param ignore_errors: with ``force``: log errors instead of raising them.
        :raises os_brick_nvmeof.errors.KumoBrickError: when something did not go away.
        """
        if not recognised(connection_properties):
            super().disconnect_volume(connection_properties, device_info, force, ignore_errors)
            return
        self._detach(connection_properties, device_info, force, ignore_errors)

    def extend_volume(self, connection_properties: Properties) -> int:
        """Let the device have the size that its volume has now.

        :returns: that size in bytes.
        :raises os_brick_nvmeof.errors.KumoBrickError: when it does not get it.
        """
        if not recognised(connection_properties):
            return int(super().extend_volume(connection_properties))
        return self._extend(connection_properties)

    def get_volume_paths(
        self, connection_properties: Any, device_info: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Where the volume is on this host now; empty when it is not attached.

        Stock asks this of itself with properties it has parsed, which are answered by stock.
        """
        given = () if device_info is None else (device_info,)
        if isinstance(connection_properties, nvmeof.NVMeOFConnProps):
            return list(super().get_volume_paths(connection_properties, *given))
        if not recognised(connection_properties):
            parsed = nvmeof.NVMeOFConnProps(connection_properties)
            return list(super().get_volume_paths(parsed, *given))
        volume = props.parse(connection_properties)
        with _typed(volume):
            return list(_engine(volume).paths(self._context(volume), volume))

    @classmethod
    def _set_native_multipath_supported(cls) -> bool:
        # Stock's class has the answer of the kernel, for both.
        return bool(nvmeof.NVMeOFConnector._set_native_multipath_supported())

    @utils.trace
    def _attach(self, connection_properties: Properties) -> dict[str, str]:
        volume = props.parse(connection_properties)
        self._check_multipath(volume)
        context = self._context(volume)
        with _typed(volume), context.locks.volume(volume.uuid):
            path = _engine(volume).attach(context, volume)
        return _Attached(path, lambda: self._take_back(context, volume)).answer(
            connection_properties
        )

    @utils.trace
    @utils.connect_volume_undo_prepare_result(unlink_after=True)
    def _detach(
        self,
        connection_properties: Properties,
        device_info: Mapping[str, Any] | None,
        force: bool,
        ignore_errors: bool,
    ) -> None:
        volume = props.parse(_with_path(connection_properties, device_info))
        context = self._context(volume)
        try:
            with _typed(volume), context.locks.volume(volume.uuid):
                _engine(volume).detach(context, volume, force)
        except errors.KumoBrickError as error:
            if not (force and ignore_errors):
                raise
            LOG.warning("Detaching %s had errors, which are ignored as asked: %s", volume, error)

    @utils.trace
    @utils.connect_volume_undo_prepare_result
    def _extend(self, connection_properties: Properties) -> int:
        volume = props.parse(connection_properties)
        context = self._context(volume)
        with _typed(volume), context.locks.volume(volume.uuid):
            return int(_engine(volume).extend(context, volume))

    def _take_back(self, context: Context, volume: props.Volume) -> None:
        try:
            with _typed(volume), context.locks.volume(volume.uuid):
                _engine(volume).detach(context, volume, False)
        except errors.KumoBrickError as error:
            LOG.warning("Taking back the failed attach of %s: %s", volume, error)

    def _check_multipath(self, volume: props.Volume) -> None:
        if volume.enforce_multipath and self.use_multipath and not self.native_multipath_supported:
            raise errors.MultipathError(
                "multipath is enforced and the kernel's native NVMe multipath is off",
                volume=volume.uuid,
                way_out="boot with nvme_core.multipath=Y, or do not enforce multipath",
            )

    def _context(self, volume: props.Volume) -> Context:
        conf.register(cfg.CONF, os.uname().release)
        return Context(
            host=LocalHost(),
            conf=cfg.CONF,
            host_nqn=volume.host_nqn or utils.get_host_nqn() or "",
            host_id=utils.get_nvme_host_id(None) or "",
            multipath=bool(self.use_multipath and self.native_multipath_supported),
            locks=Locks(_lock_path()),
        )


class AnnouncingConnector(KumoNVMeOFConnector):
    """Tells Cinder, among the properties of the host, that our connector is at work there."""

    @classmethod
    def get_connector_properties(
        cls, root_helper: str, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Stock's properties, and the key ``kumo``."""
        found = dict(super().get_connector_properties(root_helper, *args, **kwargs))
        found[props.KEY] = {"version": props.VERSION, "abilities": list(ABILITIES)}
        return found


class _Attached:
    """A device just attached, as the decorator for encrypted volumes wants to see it.

    It makes the symbolic link that encryptors take over, and on failure calls
    ``disconnect_volume`` of its object without the connection properties.
    """

    def __init__(self, path: str, take_back: Callable[[], None]) -> None:
        self._path = path
        self._take_back = take_back

    @utils.connect_volume_prepare_result
    def answer(self, connection_properties: Properties) -> dict[str, str]:
        return {"type": "block", "path": self._path}

    def disconnect_volume(self, *_args: Any, **_kwargs: Any) -> None:
        self._take_back()


def recognised(properties: Properties) -> bool:
    """Whether a volume is ours that is attached already: by our key, or by its legs' NQNs."""
    if props.is_ours(properties):
        return True
    legs = properties.get("volume_replicas") if props.is_kumoscale(properties) else None
    return bool(legs) and all(_OUR_NQN.fullmatch(str(leg.get("target_nqn"))) for leg in legs or ())


@contextlib.contextmanager
def _typed(volume: props.Volume) -> Iterator[None]:
    """Let what the host refuses be an error of ours, too."""
    try:
        yield
    except (OSError, CommandError) as error:
        raise errors.HostError(
            str(error),
            volume=volume.uuid,
            way_out="see the log of the host's kernel, and try again",
        ) from error


def _engine(volume: props.Volume) -> Any:
    return replicated if volume.replicated else plain


def _with_path(properties: Properties, device_info: Mapping[str, Any] | None) -> Properties:
    path = utils.get_dev_path(properties, device_info)
    return {**properties, "device_path": path} if path else properties


def _lock_path() -> str:
    """Where stock has its lock files: all services of the host that use os-brick share it.

    :raises oslo_config.cfg.RequiredOptError: when no directory is configured.
    """
    path = cfg.CONF.os_brick.lock_path or cfg.CONF.oslo_concurrency.lock_path
    if not path:
        raise cfg.RequiredOptError("lock_path", cfg.OptGroup("os_brick"))
    return str(path)
