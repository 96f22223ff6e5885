# SPDX-License-Identifier: Apache-2.0
"""What the node needs of the running system: modules, configfs, a udev rule, identity."""

from __future__ import annotations

import errno
import os
import pathlib
import platform
import socket
from collections.abc import Sequence

from oslo_log import log

from kumo_client import errors
from kumo_node.conf import NodePortal
from kumo_node.executor import CommandError, Executor

LOG = log.getLogger(__name__)
# Upstream calls the neighbours 11-dm-lvm.rules and 13-dm-disk.rules, Debian 56-lvm.rules and
# 60-persistent-storage-dm.rules: the same rule stands in both gaps.
RULES = ("run/udev/rules.d/12-kumo-node.rules", "run/udev/rules.d/57-kumo-node.rules")
# What lies on our volumes belongs to the hosts: udev must not look into it and must not let
# mdadm or others assemble it here, which would write to it. The rule stands between the file of
# lvm2 that sets DM_VG_NAME and makes the link in /dev/<group>/, and the one that reads contents.
_RULE = """# Written by kumo-node at each start.
SUBSYSTEM!="block", GOTO="kumo_end"
ENV{{DM_VG_NAME}}!="{groups}", GOTO="kumo_end"
ENV{{DM_UDEV_DISABLE_DISK_RULES_FLAG}}="1"
ENV{{DM_UDEV_DISABLE_OTHER_RULES_FLAG}}="1"
OPTIONS:="nowatch"
LABEL="kumo_end"
"""
# Before 60-persistent-storage.rules, which reads contents; the rules of md, LVM and others begin
# from what it found.
COPY_RULES = "run/udev/rules.d/12-kumo-node-copies.rules"
_COPY_RULE = (
    'SUBSYSTEM=="block", KERNEL=="nvme*", ATTRS{{subsysnqn}}=="{nqn}", '
    'ENV{{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}}="1", ENV{{SYSTEMD_READY}}="0", '
    'OPTIONS:="nowatch"\n'
)


class Kernel:
    """The running system below one root directory.

    :param root: ``/`` or, in tests, a directory that looks like it.
    """

    def __init__(self, executor: Executor, root: str | os.PathLike[str] = "/") -> None:
        self.executor = executor
        self.root = pathlib.Path(root)

    def _text(self, path: str) -> str:
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return ""

    def boot_id(self) -> str:
        """Changes with each boot; "" when the kernel does not tell."""
        return self._text("proc/sys/kernel/random/boot_id")

    def release(self) -> str:
        return platform.release()

    def hostname(self) -> str:
        return socket.gethostname()

    def modules(self, portals: Sequence[NodePortal]) -> list[str]:
        """Modules needed for these portals."""
        return ["nvmet", *sorted({f"nvmet-{portal.trtype}" for portal in portals})]

    def load(self, portals: Sequence[NodePortal]) -> None:
        """Load the modules and see to it that the configfs tree is there.

        :raises ConfigError: when that cannot be done.
        """
        wanted = self.modules(portals)
        missing = [name for name in wanted if not self.is_loaded(name)]
        if missing:
            try:
                self.executor.run("modprobe", "-a", *missing)
            except CommandError as error:
                raise errors.ConfigError(
                    f"Kernel modules {', '.join(missing)} cannot be loaded: {error.stderr}",
                    way_out="Install a kernel with the NVMe target (Debian: linux-image-amd64)",
                ) from error
        self._mount_configfs()

    def is_loaded(self, module: str) -> bool:
        return (self.root / "sys/module" / module.replace("-", "_")).exists()

    def _mount_configfs(self) -> None:
        tree = self.root / "sys/kernel/config"
        if (tree / "nvmet").is_dir():
            return
        try:
            self.executor.run("mount", "-t", "configfs", "configfs", str(tree))
        except CommandError as error:
            raise errors.ConfigError(f"configfs cannot be mounted: {error.stderr}") from error

    def hide_volumes(self, groups: str) -> None:
        """Tell udev to leave the contents of our volumes alone, before any is activated.

        :param groups: pattern of the names of our volume groups, as in udev(7).
        """
        text = _RULE.format(groups=groups)
        if all(self._text(name) == text.strip() for name in RULES):
            return
        for name in RULES:
            self._write(self.root / name, text)
        self._reload_rules()

    def hide_subsystems(self, nqns: Sequence[str]) -> None:
        """Tell udev to leave the contents of these subsystems' namespaces alone.

        :raises ConfigError: that cannot be done.
        """
        rules = "".join(_COPY_RULE.format(nqn=nqn) for nqn in nqns)
        text = f"# Written by kumo-node for copies from other nodes.\n{rules}"
        if self._text(COPY_RULES) == text.strip():
            return
        self._write(self.root / COPY_RULES, text)
        self._reload_rules()

    def _reload_rules(self) -> None:
        try:
            self.executor.run("udevadm", "control", "--reload")
        except CommandError as error:
            raise errors.ConfigError(f"udev does not take our rule: {error.stderr}") from error

    def _write(self, path: pathlib.Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise errors.ConfigError(f"{path} cannot be written: {error}") from error


def is_held(path: str) -> bool | None:
    """Whether the kernel has a block device claimed: yes, no, or None for could not tell.

    An exclusive open of a block device is refused with EBUSY while a mount, md, dm or swap holds
    it or one of its partitions (block/bdev.c, bd_prepare_to_claim).
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return True if error.errno == errno.EBUSY else None
    return False


def notify(state: str) -> None:
    """Tell systemd, as sd_notify(3): a datagram to the socket in NOTIFY_SOCKET, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        LOG.warning("systemd cannot be told %s: %s", state, error)
