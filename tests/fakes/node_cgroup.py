# SPDX-License-Identifier: Apache-2.0
"""The root group of a blkio hierarchy, as block/blk-throttle.c keeps its rules.

A rule belongs to a device and goes with it; the value 0 removes it.
"""

import errno
import os


class FakeCgroup:
    """Rules by file and device.

    :ivar step: called before each write with a word for it; may raise.
    """

    def __init__(self, host):
        self.host = host
        self.rules = {}
        self.step = lambda what: None

    def at(self, path):
        """As the constructor of kumo_node.throttle.Cgroup."""
        assert path == self.host.root / "run/kumo/blkio"
        return self

    def _devices(self):
        return {path.read_text().strip() for path in self._paths()}

    def _paths(self):
        found = self.host.root.glob("sys/class/block/*/dev")
        return [path for path in found if (self.host.root / "dev" / path.parent.name).exists()]

    def lines(self, name):
        assert name.startswith("blkio.throttle.")
        assert name.endswith("_device")
        there = self._devices()
        rules = self.rules.setdefault(name, {})
        for device in set(rules) - there:
            del rules[device]
        return [f"{device} {value}" for device, value in rules.items()]

    def write(self, name, line):
        self.step(f"{name} {line}")
        device, value = line.split()
        if device not in self._devices():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), device)
        self.lines(name)
        self.rules[name].pop(device, None)
        if int(value):
            self.rules[name][device] = int(value)

    def of(self, lv):
        """(read IOPS, write IOPS, read bytes/s, write bytes/s) of a volume; 0 is no cap."""
        names = [f"blkio.throttle.{way}_{kind}_device" for kind in ("iops", "bps")
                 for way in ("read", "write")]  # fmt: skip
        rules = [dict(line.split() for line in self.lines(name)) for name in names]
        return tuple(int(rule.get(f"252:{lv.number}", 0)) for rule in rules)
