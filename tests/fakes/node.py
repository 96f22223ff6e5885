# SPDX-License-Identifier: Apache-2.0
"""A whole storage node on a fake host: the real service, a fake LVM and a fake configfs."""

import pathlib

from kumo_node import conf
from kumo_node.disks import Disks
from kumo_node.initiator import Initiator
from kumo_node.kernel import Kernel
from kumo_node.service import Node
from kumo_node.throttle import Throttle
from tests.fakes.node_cgroup import FakeCgroup
from tests.fakes.node_fabrics import FakeFabrics
from tests.fakes.node_lvm import FakeHost
from tests.fakes.node_nvmet import FakeNvmet

TOKEN = "node-token-for-tests-only"
PORTALS = "tcp://10.77.0.11:4420,rdma://[fd00::11]:4420"


class FakeMachine:
    """A machine that runs a node.

    :ivar host: disks and LVM. :ivar nvmet: configfs. :ivar node: the running node, or None.
    """

    def __init__(self, root, *, disks=("vdb",), **options):
        self.root = pathlib.Path(root)
        self.host = FakeHost(self.root)
        for name in disks:
            self.host.add_disk(name)
        self.nvmet = FakeNvmet(self.root / "sys/kernel/config/nvmet")
        self.options = {
            "disks": ",".join(str(self.root / "dev" / name) for name in disks),
            "portals": PORTALS,
            "state_dir": self.root / "state",
            "token_file": self.root / "token",
            "hostname": "storage-1",
            "lock_timeout": 1,
            "pool_layout": "group",
            **options,
        }
        (self.root / "token").write_text(f"# tokens\n{TOKEN}\n")
        self.node = None
        self.time = 0.0
        self.cgroup = FakeCgroup(self.host)
        self.fabrics = FakeFabrics(self)

    def conf(self):
        text = "\n".join(f"{name} = {value}" for name, value in self.options.items())
        path = self.root / "node.conf"
        path.write_text(f"[DEFAULT]\n{text}\n")
        return conf.load([], files=[str(path)])

    def start(self):
        """Start the daemon's service; returns what could not be restored."""
        return self.start_node().prepare()

    def start_node(self):
        """The service, before it has done anything."""
        options = self.conf()
        self.node = Node(
            options,
            executor=self.host,
            root=self.root,
            configfs=self.nvmet,
            disks=Disks(self.host, self.host.is_held),
            throttle=self._throttle(options),
            initiator=Initiator(
                Kernel(self.host, self.root),
                self.host,
                self.root,
                fabrics=self.fabrics,
                sleep=lambda seconds: None,
            ),
        )
        self.node.health.clock = lambda: self.time
        return self.node

    def later(self, seconds=1000.0):
        """Time passes for the health of the node."""
        self.time += seconds

    def _throttle(self, options):
        return Throttle(
            self.host,
            self.root,
            mode=options.throttle,
            least_iops=options.throttle_min_iops,
            least_bw=options.throttle_min_bw,
            cgroup=self.cgroup.at,
        )

    def kill(self):
        """The process is gone; the kernel keeps what it has."""
        if self.node is not None and not self.node.ctx.spec.closed:
            self.node.close()
        self.node = None

    def reboot(self):
        """Power is lost and comes back; the daemon is not started yet."""
        self.kill()
        self.nvmet.load()
        self.fabrics.reboot()
        self.host.boot()
