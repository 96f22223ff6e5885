# SPDX-License-Identifier: Apache-2.0
"""This node as an NVMe-oF host, to read a replica of another node.

Through ``/dev/nvme-fabrics``, as libnvme does it: options in, ``instance=N,cntlid=M`` out
(``nvmf_dev_write()`` and ``opt_tokens``, drivers/nvme/host/fabrics.c), and
``/sys/class/nvme/*/delete_controller``. A namespace is taken only when it has the UUID that is
looked for and is of the subsystem that was connected.

udev is told first to look into nothing of that subsystem: mdadm would assemble the array on a leg.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.common import Portal
from kumo_node.executor import CommandError, Executor
from kumo_node.exports import check_nqn
from kumo_node.kernel import Kernel

LOG = log.getLogger(__name__)
_SECTOR = 512
# A path that is lost fails reads soon: the copy is tried again from where it was.
_TIMES = "ctrl_loss_tmo=60,reconnect_delay=2,keep_alive_tmo=5,fast_io_fail_tmo=10"
_QUEUES = 2
# Seconds in which the namespaces of a new controller are found.
_SCAN = 10.0
_DISK = re.compile(r"^nvme\d+n\d+$")


@dataclasses.dataclass(frozen=True)
class Namespace:
    """A namespace of another node; ``device`` is its node, ``bytes`` its size."""

    device: str
    bytes: int


class Fabrics:
    """The two files of the kernel that change something."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root

    def connect(self, options: str) -> str:
        """:raises OSError: the kernel could not connect."""
        handle = os.open(self.root / "dev/nvme-fabrics", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(handle, options.encode())
            return os.read(handle, 4096).decode(errors="replace")
        finally:
            os.close(handle)

    def delete(self, controller: str) -> None:
        path = self.root / "sys/class/nvme" / controller / "delete_controller"
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(handle, b"1")
        finally:
            os.close(handle)


def host_id(host_nqn: str) -> str:
    """The host identifier that goes with an NQN: the kernel refuses another one for the same."""
    match = re.search(r"uuid:([0-9a-fA-F-]{36})$", host_nqn)
    return match[1].lower() if match else str(uuid.uuid5(uuid.NAMESPACE_URL, host_nqn))


class Initiator:
    """Connections of this node.

    :param root: directory that stands for ``/``.
    :param fabrics: what changes the kernel; the real one when None.
    """

    def __init__(
        self,
        kernel: Kernel,
        executor: Executor,
        root: str | os.PathLike[str] = "/",
        *,
        fabrics: Fabrics | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.kernel = kernel
        self.executor = executor
        self.root = pathlib.Path(root)
        self.fabrics = fabrics or Fabrics(self.root)
        self.sleep = sleep

    def possible(self) -> bool:
        """True when this kernel has the module of an NVMe/TCP host."""
        if self.kernel.is_loaded("nvme-tcp"):
            return True
        try:
            self.executor.run("modprobe", "-n", "nvme-tcp")
        except CommandError as error:
            LOG.warning("Replicas of other nodes cannot be copied to this one: %s", error.stderr)
            return False
        return True

    # Connecting.

    def hide(self, subsystems: Iterable[str]) -> None:
        """Let udev look into nothing of these subsystems.

        :raises ConfigError: udev cannot be told.
        """
        self.kernel.hide_subsystems(sorted(subsystems))

    def connect(self, subsystem: str, host_nqn: str, portals: Sequence[Portal]) -> None:
        """Connect through the first portal that answers; to be connected is success.

        :raises InvalidInputError: an NQN or address cannot be one.
        :raises BackendUnavailableError: none answers.
        """
        for nqn in (subsystem, host_nqn):
            check_nqn(nqn)
        if self._controllers(subsystem, host_nqn):
            return
        reasons = []
        for portal in portals:
            transport = "tcp" if portal.transport.upper() == "TCP" else "rdma"
            try:
                self._load(transport)
                self.fabrics.connect(_options(subsystem, host_nqn, portal, transport))
            except OSError as error:
                if error.errno == errno.EALREADY:
                    return
                reasons.append(f"{portal.ip}: {error.strerror}")
            else:
                return
        raise errors.BackendUnavailableError(
            f"The source cannot be reached ({'; '.join(reasons) or 'it has no portal'})",
            way_out="Check the data network between the storage nodes",
        )

    def _load(self, transport: str) -> None:
        module = f"nvme-{transport}"
        if self.kernel.is_loaded(module):
            return
        try:
            self.executor.run("modprobe", module)
        except CommandError as error:
            raise OSError(errno.ENODEV, f"module {module}: {error.stderr}") from error

    def find(self, subsystem: str, wanted: str) -> Namespace:
        """The namespace of a connected subsystem with this UUID.

        :raises BackendUnavailableError: there is none after some seconds.
        """
        tries = 40
        for attempt in range(tries):
            for path in (self.root / "sys/class/block").glob("nvme*"):
                if _DISK.match(path.name) and self._is(path, subsystem, wanted):
                    size = int((path / "size").read_text()) * _SECTOR
                    return Namespace(str(self.root / "dev" / path.name), size)
            if attempt < tries - 1:
                self.sleep(_SCAN / tries)
        raise errors.BackendUnavailableError(
            f"The source shows no namespace {wanted}", way_out="Export it to this node first"
        )

    def _is(self, path: pathlib.Path, subsystem: str, wanted: str) -> bool:
        try:
            # Of the subsystem, or of the controller where there is no native multipath.
            nqn = (path.resolve().parent / "subsysnqn").read_text().strip()
            return nqn == subsystem and uuid.UUID(_text(path / "uuid")) == uuid.UUID(wanted)
        except (OSError, ValueError):
            return False

    def disconnect(self, subsystem: str, host_nqn: str) -> None:
        """End all connections of this host name to a subsystem; none is success.

        :raises InternalError: the kernel refuses.
        """
        for controller in self._controllers(subsystem, host_nqn):
            try:
                self.fabrics.delete(controller)
            except FileNotFoundError:
                LOG.debug("Controller %s has gone by itself", controller)
            except OSError as error:
                raise errors.InternalError(
                    f"Controller {controller} cannot be removed: {error}"
                ) from error

    def _controllers(self, subsystem: str, host_nqn: str) -> list[str]:
        found = []
        for path in sorted((self.root / "sys/class/nvme").glob("nvme*")):
            try:
                names = (_text(path / "subsysnqn"), _text(path / "hostnqn"))
            except OSError:
                # It is being removed, or is no fabrics controller.
                continue
            if names == (subsystem, host_nqn):
                found.append(path.name)
        return found


def _text(path: pathlib.Path) -> str:
    return path.read_text().strip()


def _options(subsystem: str, host_nqn: str, portal: Portal, transport: str) -> str:
    try:
        address = ipaddress.ip_address(portal.ip)
    except ValueError:
        raise errors.InvalidInputError(f"{portal.ip!r} is not an IP address") from None
    return (
        f"transport={transport},traddr={address},trsvcid={portal.port},nqn={subsystem},"
        f"hostnqn={host_nqn},hostid={host_id(host_nqn)},nr_io_queues={_QUEUES},{_TIMES}"
    )
