# SPDX-License-Identifier: Apache-2.0
"""Arrays that the kernel broke, assembled anew by the whole agent on a faked host."""

import errno
import itertools

import pytest

from os_brick_nvmeof.agent import status
from os_brick_nvmeof.host import CommandError
from tests.fakes.agent_host import Host
from tests.fakes.host_md import DATA
from tests.fakes.host_sim import Killed
from tests.unit.brick.agent.stories import GOOD, A, B, Run, records
from tests.unit.brick.volumes import VOLUME


def broken(host):
    """All legs were lost within a moment: one was dropped, md could not write down that it was."""
    array = host.md.arrays["md127"]
    host.md.fail("md127", next(iter(array.members)))
    array.state = "broken"
    host.md._show(array)


def test_an_array_that_is_broken_is_assembled_anew(host, run):
    run.rounds(2)
    broken(host)
    assert run.rounds(1) == ["Restart"]
    host.settle(3)
    run.rounds(6)
    assert host.md.arrays["md127"].state == "clean"
    assert host.in_sync() == {A, B}
    assert records(host) == {A: GOOD, B: GOOD}
    assert host.md.read("md127") == {b"first"}
    assert run.volume()["state"] == status.GOOD


@pytest.mark.parametrize("kept", [0, 1])
def test_the_leg_that_md_kept_is_the_source_when_an_array_is_assembled_anew(host, run, kept):
    """What was under way when all legs were lost is acknowledged as soon as one leg has it."""
    run.rounds(2)
    array = host.md.arrays["md127"]
    devices = sorted(array.members)
    host.md.write("md127", b"second")
    before = {one: host.md.volume(one).blocks[4096] for one in devices}
    host.md.volume(devices[1 - kept]).blocks[DATA] = b"first".ljust(4096, b"\0")
    host.md.fail("md127", devices[1 - kept])
    array.state, array.dirty = "broken", False
    host.md._show(array)
    # It was written in vain that a leg is lost, and that the array is idle.
    for device, block in before.items():
        host.md.volume(device).blocks[4096] = block
    host.md.users.add("md127")
    run.rounds(1)
    host.md.users.clear()
    run.rounds(4)
    host.settle(3)
    run.rounds(8)
    assert host.md.arrays["md127"].state in ("clean", "active")
    assert host.in_sync() == {A, B}
    assert host.md.read("md127") == {b"second"}


@pytest.mark.parametrize(
    ("known", "entered"),
    [("", []), ("2056 8\n4096 8\n", ["2047 1"]), ("2047 9\n", ["2046 1"])],
)
def test_what_the_kept_leg_lacks_is_written_down_before_the_array_is_stopped(
    host, run, known, entered
):
    run.rounds(2)
    broken(host)
    array, found = host.md.arrays["md127"], []
    home = host.md._home("md127") / "md"
    for device in array.in_sync():
        (home / f"dev-{device}/bad_blocks").write_text(known)
        (home / f"dev-{device}/offset").write_text("2048\n")

    def enter(path, value):
        assert any(one.faulty for one in array.members.values()), "no superblock would follow"
        found.append(value)

    host.kernel.writers.append((r".*/md/dev-[\w.-]+/bad_blocks", enter))
    host.md.users.add("md127")
    assert run.rounds(4).count("Restart") > 1
    assert found == entered
    host.md.users.clear()
    host.settle(3)
    run.rounds(6)
    assert run.volume()["state"] == status.GOOD


def test_an_array_whose_bad_blocks_would_be_lost_is_not_stopped(host, run):
    run.rounds(2)
    broken(host)
    (device,) = host.md.arrays["md127"].in_sync()
    home = host.md._home("md127") / f"md/dev-{device}"
    (home / "bad_blocks").write_text("2056 8\n")
    (home / "offset").write_text("2048\n")

    def full(path, value):
        raise OSError(errno.ENOSPC, "full")

    host.kernel.writers.append((r".*/md/dev-[\w.-]+/bad_blocks", full))
    assert run.rounds(1) == ["Restart"]
    assert "would be lost" in run.agent.known.memory.tried[f"Restart {VOLUME}"].error
    assert host.md.arrays["md127"].state == "broken"


def test_a_broken_array_that_somebody_has_open_is_left_to_him(host, run):
    run.rounds(2)
    broken(host)
    host.md.users.add("md127")
    assert run.rounds(3).count("Restart") == 2
    assert run.volume()["state"] == status.BROKEN
    assert "reboot its server hard" in run.volume()["notes"][0]["text"]
    assert "did not stop" in run.shown["waiting"][0]["error"]
    assert len(host.kernel.controllers()) == 2
    host.md.users.clear()
    run.rounds(8)
    assert run.volume()["state"] == status.GOOD


def test_one_that_does_not_come_up_is_tried_again_and_says_why(host, run):
    run.rounds(2)
    broken(host)
    mdadm, times = host.kernel.commands["mdadm"], []

    def refuses(*argv, timeout):
        if "--assemble" in argv:
            times.append(host.kernel.sim.now)
            raise CommandError(argv, 1, "mdadm: failed to RUN_ARRAY: Invalid argument")
        return mdadm(*argv, timeout=timeout)

    host.kernel.commands["mdadm"] = refuses
    assert run.rounds(1) == ["Restart"]
    assert run.rounds(40).count("FinishRestart") >= 3
    gaps = [later - one for one, later in itertools.pairwise(times)]
    pauses = [round(one) for one in gaps if one > 0.9]
    assert len(pauses) >= 3
    assert pauses == sorted(pauses)
    assert VOLUME in run.agent.store.memory().restarts
    (note,) = [one["text"] for one in run.volume()["notes"]]
    assert "is not up yet: Array: it did not come up" in note
    assert "Invalid argument" in note
    host.kernel.commands["mdadm"] = mdadm
    run.rounds(70)
    assert run.volume()["state"] == status.GOOD
    assert host.in_sync() == {A, B}
    assert run.agent.store.memory().restarts == {}


def killed_in(host, run, number, late):
    """A new agent, after one that was killed in its call of that number; False: it was done."""
    host.kernel.kill_at, host.kernel.kill_late = len(host.kernel.calls) + number, late
    try:
        run.rounds(1)
    except Killed:
        host.kernel.sim.bury()
        return True
    finally:
        host.kernel.kill_at = None
        run.start()
    return False


def test_an_agent_that_is_killed_while_it_assembles_anew_goes_on_with_it(tmp_path):
    gone = 0
    for number in range(99):
        path = tmp_path / str(number)
        path.mkdir()
        host = Host(path)
        host.attach()
        host.md.write("md127", b"first")
        run = Run(host, path)
        run.rounds(2)
        broken(host)
        killed = killed_in(host, run, number, late=bool(number % 2))
        gone += not host.md.arrays
        host.settle(3)
        run.rounds(8)
        assert host.in_sync() == {A, B}
        assert host.md.read("md127") == {b"first"}
        assert run.volume()["state"] == status.GOOD
        assert run.agent.store.memory().restarts == {}
        if not killed:
            break
    assert gone > 1


@pytest.fixture
def stopped(host, run):
    """The agent was killed when it had stopped a broken array."""
    run.rounds(2)
    broken(host)
    mdadm = host.kernel.commands["mdadm"]

    def last(*argv, timeout):
        mdadm(*argv, timeout=timeout)
        assert "--stop" in argv
        host.kernel.commands["mdadm"] = mdadm
        host.kernel.sim.kill()

    host.kernel.commands["mdadm"] = last
    with pytest.raises(Killed):
        run.rounds(1)
    host.kernel.sim.bury()
    run.start()
    host.settle(1)
    assert list(host.md.arrays) == []
    return host


def test_a_volume_that_was_detached_meanwhile_is_not_assembled_again(stopped, run):
    stopped.detach()
    assert "FinishRestart" not in run.rounds(3)
    assert list(stopped.md.arrays) == []
    stopped.storage.published = False
    run.rounds(1)
    assert run.agent.known.memory.restarts == {}


def test_nor_where_another_volume_keeps_the_connections(stopped, run):
    for number, target in enumerate(stopped.targets[:2]):
        target.publish(f"0b6fe5d1-0000-4000-8000-00000000000{number}")
    stopped.settle()
    for name in stopped.kernel.devices():
        if stopped.kernel.blocks[name].volume.uuid not in (A, B):
            stopped.kernel.hold(name, "dm-9")
    stopped.detach()
    assert len(stopped.kernel.controllers()) == 2
    assert run.rounds(3).count("FinishRestart") == 1
    assert list(stopped.md.arrays) == []
    assert run.agent.known.memory.restarts == {}


def test_what_the_provisioner_does_not_confirm_is_not_assembled(stopped, run):
    stopped.storage.away = True
    assert "FinishRestart" not in run.rounds(3)
    assert run.agent.known.memory.restarts
    stopped.storage.away = False
    stopped.storage.published = False
    assert "FinishRestart" not in run.rounds(3)
    assert run.agent.store.memory().restarts == {}


def test_an_array_that_was_stopped_waits_for_its_legs(stopped, run):
    stopped.hide(1)
    assert "FinishRestart" not in run.rounds(3)
    assert "is not up yet" in run.shown["volumes"][0]["notes"][0]["text"]
    stopped.back(1)
    stopped.settle(3)
    assert run.rounds(8).count("FinishRestart") == 1
    assert run.volume()["state"] == status.GOOD


def test_one_that_comes_up_by_an_attach_is_left_to_that(stopped, run):
    stopped.attach()
    assert "FinishRestart" not in run.rounds(3)
    assert run.agent.known.memory.restarts == {}


def test_nothing_is_stopped_when_the_intent_cannot_be_written(host, run, monkeypatch):
    def full(_memory):
        raise OSError(errno.ENOSPC, "full")

    run.rounds(2)
    broken(host)
    monkeypatch.setattr(run.agent.store, "save_memory", full)
    assert "Restart" in run.rounds(2)
    assert host.md.arrays["md127"].state == "broken"
    assert "cannot be written down" in run.agent.known.memory.tried[f"Restart {VOLUME}"].error
