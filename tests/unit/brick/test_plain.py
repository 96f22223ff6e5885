# SPDX-License-Identifier: Apache-2.0
"""Volumes with one replica, on a host whose kernel is a fake that behaves like Linux."""

import dataclasses
import errno
import json
import pathlib

import pytest

from os_brick_nvmeof import errors, plain, records
from os_brick_nvmeof.props import Leg, Portal, Volume
from tests.fakes.host_kernel import FROZEN, LIVE, REFUSES, SILENT, Kernel
from tests.fakes.host_sim import Killed

GIB = 1 << 30
NQN = "nqn.node1.plain"
A = "0b6fe5d1-0000-4000-8000-00000000000a"
B = "0b6fe5d1-0000-4000-8000-00000000000b"
ONE = "10.0.0.1"
TWO = "10.0.0.2"


def volume(uuid=A, addresses=(ONE,), size=GIB, nqn=NQN):
    portals = tuple(Portal(each, "4420", "tcp") for each in addresses)
    leg = Leg(uuid, nqn, portals, node="node1")
    return Volume(uuid, "", "plain", size, (leg,), False, told=True)


def files(kernel):
    """What is left in the lock directory."""
    return [path.name for path in pathlib.Path(kernel.context().locks.directory).iterdir()]


@pytest.fixture(params=[True, False], ids=["multipath", "single"])
def kernel(tmp_path, request):
    made = Kernel(tmp_path, multipath=request.param)
    made.target(NQN, ("tcp", ONE, "4420"), ("tcp", TWO, "4420")).publish(A)
    return made


def test_attach_and_detach(kernel):
    ctx = kernel.context()
    assert plain.attach(ctx, volume()) == "/dev/nvme0n1"
    assert plain.paths(ctx, volume()) == ["/dev/nvme0n1"]
    plain.detach(ctx, volume())
    assert (kernel.controllers(), kernel.devices(), files(kernel)) == ([], [], [])
    assert plain.paths(ctx, volume()) == []


def test_both_are_repeatable(kernel):
    ctx = kernel.context()
    first = plain.attach(ctx, volume())
    calls = len(kernel.calls)
    assert plain.attach(ctx, volume()) == first
    assert kernel.calls[calls:] == []
    plain.detach(ctx, volume())
    plain.detach(ctx, volume())
    assert kernel.controllers() == []


def test_all_portals_with_multipath_else_one(kernel):
    plain.attach(kernel.context(), volume(addresses=(ONE, TWO)))
    assert len(kernel.controllers()) == (2 if kernel.multipath else 1)
    assert len(kernel.devices()) == 1
    plain.detach(kernel.context(), volume(addresses=(ONE, TWO)))
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_a_second_volume_needs_no_new_connection(kernel):
    ctx = kernel.context()
    plain.attach(ctx, volume())
    kernel.targets[NQN].publish(B)
    kernel.sim.sleep(1)
    calls = len(kernel.calls)
    assert plain.attach(ctx, volume(B)) == "/dev/nvme0n2"
    assert kernel.calls[calls:] == []
    plain.detach(ctx, volume(A))
    # A is still published, so its device stays, and B is untouched.
    assert kernel.controllers() == [(NQN, ONE)]
    plain.detach(ctx, volume(B))
    assert (kernel.controllers(), files(kernel)) == ([], [])


def test_a_target_without_events_is_rescanned(kernel):
    ctx = kernel.context()
    plain.attach(ctx, volume())
    kernel.targets[NQN].quiet = True
    kernel.targets[NQN].publish(B)
    before = kernel.sim.now
    assert plain.attach(ctx, volume(B)) == "/dev/nvme0n2"
    assert kernel.sim.now - before < 0.1


def test_volumes_of_others_keep_their_connection(kernel):
    kernel.targets[NQN].publish(B)
    ctx = kernel.context()
    plain.attach(ctx, volume())
    plain.detach(ctx, volume())
    # Nobody recorded B: stock os-brick may have attached it.
    assert kernel.controllers() == [(NQN, ONE)]
    kernel.targets[NQN].unpublish(B)
    kernel.sim.sleep(1)
    plain.detach(ctx, volume())
    assert kernel.controllers() == []


def test_a_released_volume_with_a_holder_keeps_its_connection(kernel):
    kernel.targets[NQN].publish(B)
    ctx = kernel.context()
    plain.attach(ctx, volume(A))
    other = plain.attach(ctx, volume(B))
    plain.detach(ctx, volume(B))
    kernel.hold(other[5:])
    plain.detach(ctx, volume(A))
    assert kernel.controllers() == [(NQN, ONE)]
    kernel.let_go(other[5:])
    plain.detach(ctx, volume(A))
    assert kernel.controllers() == []


def test_a_dead_portal_is_passed_over(kernel):
    for behaviour in (REFUSES, SILENT):
        kernel.nodes[ONE] = behaviour
        before = kernel.sim.now
        plain.attach(kernel.context(), volume(addresses=(ONE, TWO)))
        # With multipath the others get a second more.
        assert kernel.sim.now - before < 1.5
        plain.detach(kernel.context(), volume(addresses=(ONE, TWO)))
        kernel.sim.finish()
        assert kernel.controllers() == []


@pytest.mark.parametrize(
    ("behaviour", "seconds", "reason"),
    [(REFUSES, 0.5, "Connection refused"), (SILENT, 4.5, r"not connected after 4 s|no answer")],
)
def test_nobody_answers(kernel, behaviour, seconds, reason):
    kernel.nodes.update({ONE: behaviour, TWO: behaviour})
    before = kernel.sim.now
    with pytest.raises(errors.UnreachableError, match=reason) as caught:
        plain.attach(kernel.context(), volume(addresses=(ONE, TWO)))
    assert kernel.sim.now - before < seconds
    for part in (A, "node1", "tcp://10.0.0.1:4420", "tcp://10.0.0.2:4420", "check the node"):
        assert part in str(caught.value)
    assert not any(call[0] == "fabrics" for call in kernel.calls)
    kernel.sim.finish()
    assert kernel.controllers() == []


def test_a_connect_that_hangs_is_left_and_cleans_up(kernel):
    kernel.nodes[ONE] = FROZEN
    before = kernel.sim.now
    with pytest.raises(errors.UnreachableError, match="not connected after 4 s"):
        plain.attach(kernel.context(), volume())
    assert kernel.sim.now - before < 5
    kernel.nodes[ONE] = LIVE
    kernel.sim.finish()
    assert kernel.nvme.ever == 1
    assert kernel.controllers() == []


def test_a_late_connect_is_kept_for_whom_it_serves(kernel):
    kernel.nodes[ONE] = FROZEN
    with pytest.raises(errors.UnreachableError):
        plain.attach(kernel.context(), volume())
    kernel.sim.after(2, lambda: kernel.nodes.update({ONE: LIVE}))
    # The second try waits behind the first in the kernel, and takes what that one made.
    assert plain.attach(kernel.context(), volume()) == "/dev/nvme0n1"
    kernel.sim.finish()
    assert kernel.controllers() == [(NQN, ONE)]
    assert kernel.devices() == ["nvme0n1"]


def test_a_refused_host(kernel):
    kernel.targets[NQN].hosts = ("nqn.other",)
    with pytest.raises(errors.UnreachableError, match="refuses this host"):
        plain.attach(kernel.context(), volume())
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_a_namespace_that_is_not_there(kernel):
    before = kernel.sim.now
    with pytest.raises(errors.NamespaceMissingError, match="does not offer it") as caught:
        plain.attach(kernel.context(), volume(B))
    assert B in str(caught.value)
    assert kernel.sim.now - before < 2
    assert kernel.controllers() == []


def test_a_namespace_of_which_nothing_is_known(kernel):
    kernel.nvme.scan_seconds = 1e6
    before = kernel.sim.now
    with pytest.raises(errors.UnreachableError, match="has not appeared"):
        plain.attach(kernel.context(), volume())
    assert 10 <= kernel.sim.now - before < 11
    assert kernel.controllers() == []


def test_a_target_that_does_not_tell(kernel):
    kernel.refusing["identify"] = errno.EIO
    with pytest.raises(errors.NamespaceMissingError):
        plain.attach(kernel.context(), volume(B))
    assert sum(call[0] == "identify" for call in kernel.calls) > 2


def test_swapped_namespace_numbers(kernel):
    ctx = kernel.context()
    plain.attach(ctx, volume())
    target = kernel.targets[NQN]
    target.quiet = True
    target.unpublish(A)
    target.publish(B, nsid=1)
    target.publish(A, nsid=2)
    path = plain.attach(ctx, volume(B))
    shown = kernel.root / "sys/class/block" / path[5:] / "uuid"
    assert shown.read_text().strip() == B
    path = plain.attach(ctx, volume(A))
    shown = kernel.root / "sys/class/block" / path[5:] / "uuid"
    assert shown.read_text().strip() == A


def test_a_controller_that_is_reconnecting_is_awaited(kernel):
    ctx = kernel.context()
    plain.attach(ctx, volume())
    kernel.go(ONE, SILENT)
    kernel.sim.after(1, lambda: kernel.nodes.update({ONE: LIVE}))
    assert plain.attach(ctx, volume()) == "/dev/nvme0n1"
    assert kernel.nvme.ever == 1
    kernel.go(ONE, SILENT)
    with pytest.raises(errors.UnreachableError, match=r"connecting|not connected after"):
        plain.attach(ctx, volume())
    # It was there before; others may use it.
    assert kernel.controllers() == [(NQN, ONE)]


def test_a_connection_lost_while_the_device_is_awaited(kernel):
    kernel.nvme.scan_seconds = 1
    kernel.sim.after(0.5, lambda: kernel.nvme.drop(kernel.nvme.controllers[0]))
    assert plain.attach(kernel.context(), volume()) == "/dev/nvme0n1"
    assert kernel.nvme.ever == 2


def test_a_connection_lost_again_and_again(kernel):
    kernel.nvme.scan_seconds = 1

    def cut():
        for each in list(kernel.nvme.controllers.values()):
            kernel.nvme.drop(each)
        if kernel.sim.now < 1100:
            kernel.sim.after(0.5, cut)

    kernel.sim.after(0.5, cut)
    before = kernel.sim.now
    with pytest.raises(errors.UnreachableError, match=r"lost|not appeared|not connected"):
        plain.attach(kernel.context(), volume())
    assert kernel.sim.now - before < 16


def test_stock_connected_as_another_host(kernel):
    """Its controller is not ours, and stays."""
    kernel.targets[NQN].hosts = ("nqn.other", kernel.context().host_nqn)
    kernel.fabrics(f"transport=tcp,traddr={ONE},trsvcid=4420,nqn={NQN},hostnqn=nqn.other")
    plain.attach(kernel.context(), volume())
    assert len(kernel.controllers()) == 2
    plain.detach(kernel.context(), volume())
    assert [each.options["hostnqn"] for each in kernel.nvme.controllers.values()] == ["nqn.other"]


def test_detach_writes_out_first(kernel):
    ctx = kernel.context()
    name = plain.attach(ctx, volume())[5:]
    kernel.dirty.add(name)
    plain.detach(ctx, volume())
    assert ("flush", f"/dev/{name}") in kernel.calls
    assert (kernel.dirty, kernel.controllers()) == (set(), [])


def test_detach_while_the_node_is_silent(kernel):
    """Nothing is cached: it goes, in the time that shows that the node is silent."""
    for noticed in (True, False):
        plain.attach(kernel.context(), volume())
        kernel.go(ONE, SILENT, noticed)
        before = kernel.sim.now
        plain.detach(kernel.context(), volume())
        assert kernel.sim.now - before < 3
        assert kernel.devices() == []
        kernel.go(ONE, LIVE)
        # The old controller may still be taking leave; a new one can be made all the same.
        plain.attach(kernel.context(), volume())
        plain.detach(kernel.context(), volume())
        kernel.sim.finish()
        assert kernel.controllers() == []


def test_cached_writes_that_cannot_be_written(kernel):
    name = plain.attach(kernel.context(), volume())[5:]
    kernel.go(ONE, SILENT)
    kernel.dirty.add(name)
    before = kernel.sim.now
    with pytest.raises(errors.StillInUseError, match="not written out after 20 s") as caught:
        plain.detach(kernel.context(), volume())
    assert kernel.sim.now - before < 21
    assert "detach by force" in str(caught.value)
    assert kernel.devices() == [name]
    before = kernel.sim.now
    with pytest.raises(errors.StillInUseError, match="not written out after 4 s"):
        plain.detach(kernel.context(), volume(), force=True)
    assert kernel.sim.now - before < 5
    assert (kernel.devices(), kernel.controllers()) == ([], [])
    kernel.sim.finish()


def test_force_lets_a_write_fail_that_waits_for_a_lost_node(kernel):
    name = plain.attach(kernel.context(), volume())[5:]
    kernel.dirty.add(name)
    # The host notices only after the detach has begun.
    kernel.nodes[ONE] = SILENT
    kernel.sim.after(3, lambda: kernel.go(ONE, SILENT))
    before = kernel.sim.now
    with pytest.raises(errors.StillInUseError, match="cannot be written out"):
        plain.detach(kernel.context(), volume(), force=True)
    assert kernel.sim.now - before < 6
    assert (kernel.devices(), kernel.controllers()) == ([], [])


def test_a_device_that_goes_while_it_is_flushed(kernel):
    plain.attach(kernel.context(), volume())
    kernel.refusing["flush"] = errno.ENOENT
    plain.detach(kernel.context(), volume())
    assert kernel.controllers() == []


def test_a_held_device_is_not_let_go(kernel):
    name = plain.attach(kernel.context(), volume())[5:]
    kernel.hold(name, "dm-3")
    with pytest.raises(errors.StillInUseError, match="dm-3 is made of"):
        plain.detach(kernel.context(), volume())
    assert kernel.devices() == [name]
    with pytest.raises(errors.StillInUseError, match="dm-3 is made of"):
        plain.detach(kernel.context(), volume(), force=True)
    assert kernel.devices() == []


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("quiet", [True, False])
def test_extend(kernel, quiet, block_size):
    target = kernel.targets[NQN]
    target.publish(B, block_size=block_size)
    target.quiet = quiet
    ctx = kernel.context()
    plain.attach(ctx, volume(B))
    target.resize(B, 3 * GIB)
    before = kernel.sim.now
    # The properties are those of the attach: they have the old size.
    assert plain.extend(ctx, volume(B)) == 3 * GIB
    assert kernel.sim.now - before < 0.2
    assert plain.extend(ctx, volume(B, size=3 * GIB)) == 3 * GIB


def test_extend_of_what_the_target_has_not_grown(kernel):
    plain.attach(kernel.context(), volume())
    before = kernel.sim.now
    with pytest.raises(errors.SizeError, match=f"should have {2 * GIB}"):
        plain.extend(kernel.context(), volume(size=2 * GIB))
    assert kernel.sim.now - before < 11


def test_extend_when_nobody_tells(kernel):
    plain.attach(kernel.context(), volume())
    kernel.refusing["identify"] = errno.EIO
    with pytest.raises(errors.SizeError, match="is not known"):
        plain.extend(kernel.context(), volume())
    kernel.go(ONE, SILENT, noticed=False)
    with pytest.raises(errors.SizeError, match="no answer after 10 s"):
        plain.extend(kernel.context(), volume())
    kernel.go(ONE, SILENT)
    with pytest.raises(errors.NamespaceMissingError, match="not attached"):
        plain.extend(kernel.context(), volume())


def test_extend_of_what_is_not_attached(kernel):
    with pytest.raises(errors.NamespaceMissingError, match="attach it first"):
        plain.extend(kernel.context(), volume())


def test_a_leg_that_is_not_handed_out(kernel):
    with pytest.raises(errors.UnreachableError, match="does not offer"):
        plain.attach(kernel.context(), volume(nqn=""))


def test_the_rest_of_a_failed_attach_that_stays_is_logged(kernel, caplog):
    kernel.refusing["delete_controller"] = errno.EPERM
    with pytest.raises(errors.NamespaceMissingError):
        plain.attach(kernel.context(stop_timeout=1), volume(B))
    assert "What a failed attach" in caplog.text
    assert len(kernel.controllers()) == 1


def test_a_controller_that_is_being_made_is_deleted_later(kernel):
    plain.attach(kernel.context(), volume())
    kernel.refusing["delete_controller"] = errno.EBUSY
    plain.detach(kernel.context(), volume())
    assert kernel.controllers() == []


def test_records_of_another_boot_do_not_count(kernel):
    ctx = kernel.context()
    kernel.targets[NQN].publish(B)
    plain.attach(ctx, volume(B))
    plain.attach(ctx, volume(A))
    plain.detach(ctx, volume(B))
    assert records.of(ctx, NQN) == {A: records.ATTACHED, B: records.RELEASED}
    kernel.boot()
    assert records.of(ctx, NQN) == {}
    plain.detach(ctx, volume(A))
    assert kernel.controllers() == [(NQN, ONE)]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"boot": 3})])
def test_records_that_make_no_sense(kernel, text):
    ctx = kernel.context()
    plain.attach(ctx, volume())
    (path,) = pathlib.Path(ctx.locks.directory).iterdir()
    path.write_text(text)
    assert records.of(ctx, NQN) == {}
    plain.detach(ctx, volume())
    assert kernel.controllers() == []


def test_records_that_cannot_be_written(kernel, caplog):
    """Then a connection may stay; none is lost."""
    ctx = kernel.context()
    plain.attach(ctx, volume())
    kernel.targets[NQN].publish(B)
    plain.attach(ctx, volume(B))
    (path,) = pathlib.Path(ctx.locks.directory).iterdir()
    pathlib.Path(f"{path}.new").mkdir()
    plain.detach(ctx, volume(B))
    assert "cannot be written" in caplog.text
    assert records.of(ctx, NQN) == {}
    plain.detach(ctx, volume(A))
    assert kernel.controllers() == [(NQN, ONE)]


def test_a_host_without_a_lock_directory(kernel):
    kernel.targets[NQN].publish(B)
    ctx = kernel.context(directory=None)
    plain.attach(ctx, volume(A))
    plain.attach(ctx, volume(B))
    plain.detach(ctx, volume(A))
    plain.detach(ctx, volume(B))
    assert kernel.controllers() == []


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_any_call_then_tried_again(tmp_path, late):
    """SIGKILL at each call of an attach and a detach; what the kernel was doing, it ends."""
    for number in range(1000):
        kernel = Kernel(tmp_path / f"{number}", seed=number)
        target = kernel.target(NQN, ("tcp", ONE, "4420"), ("tcp", TWO, "4420"))
        target.publish(A)
        wanted = volume(addresses=(ONE, TWO))
        kernel.kill_at, kernel.kill_late = number, late
        killed = 0
        for verb in (plain.attach, plain.detach):
            try:
                verb(kernel.context(), wanted)
            except Killed:
                killed += 1
                kernel.sim.bury()
                verb(kernel.context(), wanted)
            if verb is plain.attach:
                assert kernel.devices() == ["nvme0n1"]
        kernel.sim.finish()
        assert (kernel.controllers(), kernel.devices(), files(kernel)) == ([], [], []), number
        if not killed:
            break
    assert 5 < number < 100


def test_what_a_volume_is_given_is_not_changed(kernel):
    given = volume()
    before = dataclasses.replace(given)
    plain.attach(kernel.context(), given)
    assert given == before
