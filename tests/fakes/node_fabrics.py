# SPDX-License-Identifier: Apache-2.0
"""NVMe-oF between fake machines: /dev/nvme-fabrics and what sysfs shows of connections.

A connection sees what the target of the other machine shows to that host name, on a portal that is
linked. Namespaces are links to the files that stand for the other machine's volumes.
"""

import errno
import os
import shutil


class FakeFabrics:
    """As kumo_node.initiator.Fabrics.

    :ivar others: machines that can be reached, by the address of a portal.
    :ivar step: called before each change with a word for it; may raise.
    :ivar wrong_bytes: added to the size that sysfs shows.
    """

    def __init__(self, machine):
        self.machine = machine
        self.root = machine.root
        self.others = {}
        self.connected = {}
        self.log = []
        self.step = lambda what: None
        self.wrong_bytes = 0

    def connect(self, options):
        self.step(f"connect {options}")
        self.log.append(options)
        fields = dict(part.split("=", 1) for part in options.split(","))
        allowed = {
            "transport", "traddr", "trsvcid", "nqn", "hostnqn", "hostid", "nr_io_queues",
            "ctrl_loss_tmo", "reconnect_delay", "keep_alive_tmo", "fast_io_fail_tmo",
        }  # fmt: skip
        if set(fields) - allowed:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        other = self.others.get(fields["traddr"])
        if other is None:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        pair = (fields["nqn"], fields["hostnqn"])
        if pair in self.connected.values():
            raise OSError(errno.EALREADY, os.strerror(errno.EALREADY))
        hosts = other.nvmet.names("subsystems", fields["nqn"], "allowed_hosts")
        if fields["hostnqn"] not in hosts:
            raise OSError(errno.ECONNREFUSED, "Connect command failed, not allowed")
        number = next(n for n in range(99) if f"nvme{n}" not in self.connected)
        name = f"nvme{number}"
        self.connected[name] = pair
        base = self.root / "sys/class/nvme" / name
        base.mkdir(parents=True)
        (base / "subsysnqn").write_text(f"{pair[0]}\n")
        (base / "hostnqn").write_text(f"{pair[1]}\n")
        self._show(name, other)
        return f"instance={number},cntlid=1"

    def _show(self, name, other):
        """The namespaces, below the subsystem as with native multipath."""
        nqn, _host = self.connected[name]
        system = self.root / "sys/devices/virtual/nvme-subsystem" / f"nvme-subsys-{name}"
        system.mkdir(parents=True)
        (system / "subsysnqn").write_text(f"{nqn}\n")
        for number in other.nvmet.names("subsystems", nqn, "namespaces"):
            where = ("subsystems", nqn, "namespaces", number)
            if other.nvmet.read(*where, "enable") != "1":
                continue
            device = os.path.realpath(other.nvmet.read(*where, "device_path"))
            disk = system / f"{name}n{number}"
            disk.mkdir()
            (disk / "uuid").write_text(other.nvmet.read(*where, "device_uuid") + "\n")
            size = os.stat(device).st_size + self.wrong_bytes
            (disk / "size").write_text(f"{size // 512}\n")
            (self.root / "sys/class/block" / disk.name).symlink_to(disk)
            (self.root / "dev" / disk.name).symlink_to(device)
            # The path below, which is hidden.
            hidden = self.root / "sys/class/block" / f"{name}c0n{number}"
            hidden.mkdir()
            (hidden / "uuid").write_text((disk / "uuid").read_text())

    def delete(self, controller):
        self.step(f"delete {controller}")
        if controller not in self.connected:
            raise FileNotFoundError(controller)
        del self.connected[controller]
        shutil.rmtree(self.root / "sys/class/nvme" / controller)
        for path in (self.root / "sys/class/block").glob(f"{controller}[nc]*"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)
        for path in (self.root / "dev").glob(f"{controller}n*"):
            path.unlink()
        shutil.rmtree(
            self.root / "sys/devices/virtual/nvme-subsystem" / f"nvme-subsys-{controller}"
        )

    def reboot(self):
        """Connections do not survive."""
        for controller in list(self.connected):
            self.delete(controller)
