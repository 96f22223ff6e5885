# SPDX-License-Identifier: Apache-2.0
"""The scenario of growing volumes over a cloud without storage, in order and with faults."""

import itertools
import re
from types import SimpleNamespace

import pytest

from lab.errors import LabError, ScenarioFailedError
from lab.scenario import Context
from lab.scenarios import copies

IDLE = "clean\n0\nidle\nnone\n"


class FakeCloud:
    """The openstack command, a compute host and its shell. A volume is tokens by MiB."""

    def __init__(self):
        self.things = {}
        self.sizes = {}
        self.count = itertools.count(1)
        self.attached = {}
        self.array = {"state": IDLE, "dmesg": "", "mismatch": "0", "checking": 0}
        self.lost_growth = False
        self.cli = self
        self.machine = SimpleNamespace(run=self.shell)
        self.closed = False

    def json(self, *words):
        option = dict(itertools.pairwise(words))
        if words[1] == "type":
            self.things[words[-1]] = {}
            return {"id": words[-1]}
        identity = f"id{next(self.count)}"
        origin = option.get("--volume") or option.get("--snapshot") or option.get("--source")
        self.things[identity] = dict(self.things.get(origin, {}))
        self.sizes[identity] = int(option.get("--size") or self.sizes[origin])
        return {"id": identity}

    def run(self, *words):
        if words[1] == "set":
            assert words[4] not in self.attached.values()
            if not self.lost_growth:
                self.sizes[words[4]] = int(words[3])
            return
        for word in words[words.index("delete") + 1 :]:
            del self.things[word]

    def wait(self, kind, identifier, wanted, timeout=90.0):
        status = "available" if identifier in self.things else "gone"
        if status != wanted:
            raise LabError(f"{kind} {identifier} is {status}")

    def attach(self, volume):
        path = f"/dev/md/{volume}"
        self.attached[path] = volume
        return SimpleNamespace(path=path, volume=volume)

    def detach(self, attachment):
        del self.attached[attachment.path]

    def close(self):
        self.closed = True

    def shell(self, command, timeout):
        return SimpleNamespace(stdout=self._answer(command))

    def _answer(self, command):
        if command.startswith("basename"):
            return "md127\n"
        if "array_state" in command:
            return self.array["state"]
        if "dmesg" in command:
            return self.array["dmesg"]
        if command.endswith("/size"):
            return f"{3 << 21}\n"
        if "echo check" in command:
            assert command.startswith(f"echo {(3072 - 256) * 2048} > /sys/block/md127/md/sync_min")
            self.array["checking"] = 2
            return ""
        if "sync_action" in command:
            self.array["checking"] -= 1
            return "check\n" if self.array["checking"] else "idle\n"
        if "mismatch_cnt" in command:
            return self.array["mismatch"] + "\n"
        return self._disk(command)

    def _disk(self, command):
        path = re.search(r"/dev/md/\w+", command)[0]
        data, gib = (one[self.attached[path]] for one in (self.things, self.sizes))
        if command.startswith("blockdev"):
            return f"{gib << 30}\n"
        if command.startswith("cmp"):
            return "same\n" if all(first < 1024 for first in data) else ""
        if "of=" in command:
            data[int(re.search(r"seek=(\d+)", command)[1])] = next(self.count)
            return ""
        firsts = [int(first) for first in re.findall(r"skip=(\d+)", command)]
        return "".join(f"{data.get(first, 0)}  -\n" for first in firsts)


@pytest.fixture
def cloud(monkeypatch):
    cloud = FakeCloud()
    services = SimpleNamespace(cinder=cloud, start=lambda progress: [cloud], close=cloud.close)
    monkeypatch.setattr(copies, "Services", lambda lab: services)
    monkeypatch.setattr(copies, "inventory", lambda lab: dict(cloud.things))
    monkeypatch.setattr(copies.time, "sleep", lambda seconds: None)
    return cloud


@pytest.fixture
def ctx(screen, clock):
    return Context(SimpleNamespace(), screen, clock=clock)


def test_volumes_grow_and_nothing_is_left(cloud, ctx):
    copies.run(ctx)
    assert cloud.things == {}
    assert cloud.attached == {}
    assert cloud.closed
    assert [step.ok for step in ctx.steps] == [True] * len(ctx.steps)
    assert sum("alike" in step.text for step in ctx.steps) == 2, "one replica has no array"


def test_the_old_size_is_seen(cloud, ctx):
    cloud.lost_growth = True
    with pytest.raises(ScenarioFailedError, match="not 2 GiB"):
        copies.run(ctx)
    assert cloud.closed


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("mismatch", "128", "128 sectors"),
        ("dmesg", "md: resync of RAID array md127\n", "was synchronised"),
        ("state", "inactive\n0\nidle\nnone\n", "is inactive"),
        ("state", "clean\n1\nidle\nnone\n", "'1'"),
        ("state", "clean\n0\nresync\n0\n", "resync"),
    ],
)
def test_an_array_that_is_not_in_order_is_seen(cloud, ctx, part, value, why):
    cloud.array[part] = value
    with pytest.raises(ScenarioFailedError, match=why):
        copies.run(ctx)


def test_a_check_that_does_not_end(cloud, ctx, monkeypatch):
    monkeypatch.setattr(copies, "_CHECK_SECONDS", -1.0)
    with pytest.raises(LabError, match="the check of md127"):
        copies.run(ctx)


def test_a_volume_left_behind_is_seen(cloud, ctx, monkeypatch):
    left = iter([{}, {"storage1": "r-1"}])
    monkeypatch.setattr(copies, "inventory", lambda lab: next(left))
    with pytest.raises(ScenarioFailedError, match="r-1"):
        copies.run(ctx)
