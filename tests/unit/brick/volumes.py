# SPDX-License-Identifier: Apache-2.0
"""A replicated volume, its nodes, and a host, for stories."""

import dataclasses

from os_brick_nvmeof import props, replicated
from tests.fakes.host_kernel import Kernel
from tests.fakes.host_md import Md

GIB = 1 << 30
PATH = "/dev/md/volume-1"
OVERHEAD = 8 << 20
VOLUME = "6a1c2f40-0000-4000-8000-0000000000aa"
LEGS = tuple(f"6a1c2f40-0000-4000-8000-00000000000{number}" for number in "1234")


class World:
    """``legs`` nodes, each with one leg of one volume, and a host."""

    def __init__(self, path, legs=2, udev=False, multipath=True, seed=0):
        self.kernel = Kernel(path, multipath=multipath, seed=seed)
        self.md = Md(self.kernel, udev)
        self.ctx = self.kernel.context()
        self.targets = []
        for number in range(legs):
            target = self.kernel.target(f"nqn.{number}", ("tcp", self.address(number), "4420"))
            target.publish(LEGS[number], GIB + OVERHEAD)
            self.targets.append(target)
        self.told = [(props.FRESH, 0)] * legs
        self.array_state = props.NEW

    @staticmethod
    def address(number):
        return f"10.0.0.{number + 1}"

    def volume(self, **changes):
        legs = tuple(
            props.Leg(
                LEGS[number],
                f"nqn.{number}",
                (props.Portal(self.address(number), "4420", "tcp"),),
                node=f"n{number}",
                state="Available",
                freshness=fresh,
                events=events,
            )
            for number, (fresh, events) in enumerate(self.told)
        )
        plain = props.Volume(
            uuid=VOLUME,
            alias="volume-1",
            io_class=props.REPLICATED,
            size=GIB,
            legs=legs,
            replicated=True,
            array_state=self.array_state,
            told=True,
        )
        return dataclasses.replace(plain, **changes)

    def attach(self, **changes):
        return replicated.attach(self.ctx, self.volume(**changes))

    def detach(self, force=False, **changes):
        replicated.detach(self.ctx, self.volume(**changes), force)

    def used(self, data=b"first"):
        """Attach, write, detach; the record is that of a host that reports."""
        self.attach()
        self.array_state = props.OPEN
        self.md.write("md127", data)
        self.detach()
        return self

    def report(self, name="md127"):
        """The record learns what the host has."""
        array = self.md.arrays[name]
        by_leg = {self.leg_of(device): one for device, one in array.members.items()}
        self.told = [
            (props.FRESH, array.events)
            if number in by_leg and by_leg[number].in_sync
            else (props.STALE, events)
            for number, (_, events) in enumerate(self.told)
        ]

    def leg_of(self, device):
        return LEGS.index(self.md.volume(device).uuid)

    def legs_in_sync(self, name="md127"):
        return sorted(self.leg_of(device) for device in self.md.arrays[name].in_sync())

    def at_node(self, number):
        return self.targets[number].volumes[1]

    def hide(self, number, how="refuses"):
        self.kernel.go(self.address(number), how)

    def back(self, number):
        self.kernel.go(self.address(number), "live")

    def everything(self):
        """What a host that has let go must not have."""
        root = self.kernel.root
        links = (
            sorted(p.name for p in (root / "dev/md").iterdir())
            if (root / "dev/md").is_dir()
            else []
        )
        return self.kernel.controllers(), self.kernel.devices(), list(self.md.arrays), links

    def settle(self, seconds=1.0):
        self.kernel.sim.sleep(seconds)


NOTHING = ([], [], [], [])


def runs(world):
    """Commands, as words."""
    return [call[1:] for call in world.kernel.calls if call[0] == "run"]


def stale_first(world):
    """Leg 0 fails, leg 1 is written, detached; leg 0 is back."""
    world.used(b"old")
    world.attach()
    world.hide(0)
    world.md.write("md127", b"new")
    world.detach()
    world.settle(5)
    world.back(0)
