# SPDX-License-Identifier: Apache-2.0
"""Legs: several at once, shared subsystems, failures, and many volumes at the same time."""

import dataclasses
import errno

import pytest

from os_brick_nvmeof import conf, errors, fabrics, paths, plain, portals, records, waiting
from os_brick_nvmeof import legs as legs_module
from os_brick_nvmeof.props import Leg, Portal, Volume
from tests.fakes.host_kernel import FROZEN, LIVE, REFUSES, SILENT, Kernel
from tests.fakes.host_sim import Killed

GIB = 1 << 30
V = "0b6fe5d1-0000-4000-8000-000000000001"
UUID = "0b6fe5d1-0000-4000-8000-0000{:08x}"


def address(node, portal=0):
    return f"10.0.{node}.{portal + 1}"


def nqn(node):
    return f"nqn.node{node}.replicated"


def leg(node, uuid, count=1):
    own = tuple(Portal(address(node, each), "4420", "tcp") for each in range(count))
    return Leg(uuid, nqn(node), own, node=f"node{node}")


def volume(*legs, uuid=V):
    return Volume(uuid, "volume-1", "replicated", GIB, legs, True, told=True)


def make(path, nodes=2, multipath=True, seed=0, count=1):
    kernel = Kernel(path, multipath=multipath, seed=seed)
    for node in range(nodes):
        kernel.target(nqn(node), *(("tcp", address(node, each), "4420") for each in range(count)))
    return kernel


@pytest.fixture(params=[True, False], ids=["multipath", "single"])
def kernel(tmp_path, request):
    made = make(tmp_path, multipath=request.param)
    for node in range(2):
        made.targets[nqn(node)].publish(UUID.format(node))
    return made


@pytest.fixture
def legs():
    return [leg(node, UUID.format(node)) for node in range(2)]


def test_legs_are_connected_at_once(kernel, legs):
    for each in kernel.targets.values():
        each.volume(each.volumes[1].uuid).block_size = 4096
    outcomes = paths.connect_legs(kernel.context(), volume(*legs), legs)
    assert [each.device.name for each in outcomes] == ["nvme0n1", "nvme1n1"] or [
        each.device.name for each in outcomes
    ] == ["nvme1n1", "nvme0n1"]
    for outcome, asked in zip(outcomes, legs, strict=True):
        assert outcome.leg is asked
        assert outcome.device.leg is asked
        assert outcome.device.path == f"/dev/{outcome.device.name}"
        assert (outcome.device.size, outcome.device.block_size) == (GIB, 4096)
        assert (outcome.error, outcome.unreachable) == (None, False)
        assert [each.nqn for each in outcome.made] == [asked.nqn]
    paths.release_legs(kernel.context(), volume(*legs), legs)
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_time_outs_are_those_of_the_class(kernel, legs):
    paths.connect_legs(kernel.context(), volume(*legs), legs)
    assert kernel.attribute("nvme0", "fast_io_fail_tmo") == "4"
    assert kernel.attribute("nvme0", "kato") == "2"
    # Connected already, with other time-outs: those that can be are set.
    paths.connect_legs(
        kernel.context(replicated_fast_io_fail=7, replicated_reconnect_delay=3), volume(*legs), legs
    )
    assert kernel.attribute("nvme0", "fast_io_fail_tmo") == "7"
    assert kernel.attribute("nvme1", "reconnect_delay") == "3"
    assert kernel.nvme.ever == 2


@pytest.mark.parametrize(("behaviour", "most"), [(REFUSES, 0.5), (SILENT, 4.2), (FROZEN, 4.2)])
def test_a_dead_leg_does_not_hold_up_the_other(kernel, legs, behaviour, most):
    kernel.nodes[address(0)] = behaviour
    before = kernel.sim.now
    dead, fine = paths.connect_legs(kernel.context(), volume(*legs), legs)
    assert kernel.sim.now - before < most
    assert (dead.device, dead.unreachable, dead.made) == (None, True, ())
    assert isinstance(dead.error, errors.UnreachableError)
    for part in (V, legs[0].uuid, "node0", "tcp://10.0.0.1:4420"):
        assert part in str(dead.error)
    if behaviour != FROZEN:
        assert fine.device
    kernel.nodes[address(0)] = LIVE
    kernel.sim.finish()
    # What came late is kept: the volume may be attached without that leg, and wants it.
    paths.release_legs(kernel.context(), volume(*legs), legs)
    assert kernel.controllers() == []


@pytest.mark.parametrize("multipath", [True, False])
def test_each_has_its_own_time_on_a_slow_host(tmp_path, multipath):
    """Six connects in turn take longer than a portal may take, and none is given up."""
    kernel = make(tmp_path, nodes=6, multipath=multipath)
    kernel.connect_seconds, before = 1.5, kernel.sim.now
    wanted = [leg(node, UUID.format(node)) for node in range(6)]
    for node in range(6):
        kernel.targets[nqn(node)].publish(UUID.format(node))
    outcomes = paths.connect_legs(kernel.context(), volume(*wanted), wanted)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert kernel.sim.now - before > 6 * 1.5


def test_what_has_not_had_its_turn_is_left_behind_in_the_end(tmp_path):
    kernel = make(tmp_path, nodes=6)
    kernel.connect_seconds, before = 3.9, kernel.sim.now
    wanted = [leg(node, UUID.format(node)) for node in range(6)]
    for node in range(6):
        kernel.targets[nqn(node)].publish(UUID.format(node))
    ctx = kernel.context()
    outcomes = paths.connect_legs(ctx, volume(*wanted), wanted)
    assert kernel.sim.now - before < 16
    assert {type(outcome.error) for outcome in outcomes} == {type(None), errors.UnreachableError}
    paths.undo(ctx, outcomes)
    kernel.sim.finish()
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_a_frozen_node_holds_up_the_kernel(kernel, legs):
    """TCP answers and the target does not: the kernel connects nobody else meanwhile.

    Both legs are out of reach for now; what comes later is deleted, since the attach was undone.
    """
    kernel.nodes[address(0)] = FROZEN
    kernel.sim.after(30, lambda: kernel.nodes.update({address(0): LIVE}))
    ctx = kernel.context()
    outcomes = paths.connect_legs(ctx, volume(*legs), legs)
    paths.undo(ctx, outcomes)
    kernel.sim.finish()
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_a_missing_leg_is_a_definite_no(kernel, legs):
    gone = dataclasses.replace(legs[0], uuid=UUID.format(77))
    missing, fine = paths.connect_legs(kernel.context(), volume(gone, legs[1]), [gone, legs[1]])
    assert (missing.device, missing.unreachable) == (None, False)
    assert isinstance(missing.error, errors.NamespaceMissingError)
    assert fine.device
    paths.undo(kernel.context(), [missing, fine])
    assert kernel.controllers() == []


def test_two_legs_in_one_subsystem(kernel, legs):
    kernel.targets[nqn(0)].publish(UUID.format(5))
    both = [legs[0], dataclasses.replace(legs[0], uuid=UUID.format(5))]
    outcomes = paths.connect_legs(kernel.context(), volume(*both), both)
    assert all(each.device for each in outcomes)
    assert kernel.nvme.ever == 1
    paths.undo(kernel.context(), outcomes)
    assert kernel.controllers() == []


def test_undo_keeps_what_was_there(kernel, legs):
    ctx = kernel.context()
    kernel.targets[nqn(0)].publish(UUID.format(5))
    first = volume(leg(0, UUID.format(5)), uuid=UUID.format(50))
    paths.connect_legs(ctx, first, first.legs)
    paths.undo(ctx, paths.connect_legs(ctx, volume(*legs), legs))
    assert kernel.controllers() == [(nqn(0), address(0))]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_second_attach_that_fails_lets_the_first_go_on(kernel, legs, recorded):
    """A guest uses the leg: another volume's detach must not take the connection away."""
    ctx = kernel.context()
    other = volume(leg(0, UUID.format(5)), uuid=UUID.format(50))
    kernel.targets[nqn(0)].publish(UUID.format(5))
    paths.connect_legs(ctx, volume(legs[0]), legs[:1])
    if not recorded:
        records.forget(ctx, nqn(0))
    paths.connect_legs(ctx, other, other.legs)
    kernel.go(address(0), SILENT)
    outcomes = paths.connect_legs(ctx, volume(legs[0]), legs[:1])
    assert (outcomes[0].device, outcomes[0].before) == (None, True)
    paths.undo(ctx, outcomes)
    paths.release_legs(ctx, other, other.legs)
    assert kernel.controllers() == [(nqn(0), address(0))]
    paths.release_legs(ctx, volume(legs[0]), legs[:1])
    assert kernel.controllers() == []


def test_a_node_that_falls_silent_before_it_can_be_asked(kernel, legs):
    ctx = kernel.context()
    paths.connect_legs(ctx, volume(legs[0]), legs[:1])
    kernel.targets[nqn(0)].quiet = True
    kernel.targets[nqn(0)].publish(UUID.format(5))
    kernel.go(address(0), SILENT, noticed=False)
    asked = leg(0, UUID.format(5))
    before = kernel.sim.now
    (outcome,) = paths.connect_legs(ctx, volume(asked), [asked])
    assert 10 <= kernel.sim.now - before < 10.5
    assert (outcome.device, outcome.unreachable) == (None, True)
    assert "has not appeared" in str(outcome.error)
    kernel.sim.finish()


def test_undo_keeps_what_another_attach_took(kernel, legs):
    ctx = kernel.context()
    kernel.targets[nqn(0)].publish(UUID.format(5))
    mine = paths.connect_legs(ctx, volume(*legs), legs)
    second = volume(leg(0, UUID.format(5)), uuid=UUID.format(50))
    paths.connect_legs(ctx, second, second.legs)
    paths.undo(ctx, mine)
    assert kernel.controllers() == [(nqn(0), address(0))]
    paths.release_legs(ctx, second, second.legs)
    assert kernel.controllers() == []


def test_undo_keeps_a_connection_that_stock_shares(kernel, legs):
    """A second portal is ours, the first was there: what is attached through it is not known."""
    kernel.target(nqn(0), ("tcp", address(0), "4420"), ("tcp", address(0, 1), "4420"))
    kernel.targets[nqn(0)].publish(UUID.format(0))
    kernel.targets[nqn(0)].publish(UUID.format(5))
    host = kernel.context().host_nqn
    kernel.fabrics(f"transport=tcp,traddr={address(0)},trsvcid=4420,nqn={nqn(0)},hostnqn={host}")
    kernel.sim.sleep(1)
    two = leg(0, UUID.format(0), count=2)
    outcomes = paths.connect_legs(kernel.context(), volume(two), [two])
    assert len(outcomes[0].made) == (1 if kernel.multipath else 0)
    paths.undo(kernel.context(), outcomes)
    assert (nqn(0), address(0)) in kernel.controllers()


def test_an_unexpected_error_undoes_everything(kernel, legs, monkeypatch, caplog):
    real = legs_module.usable

    def broken(ctx, asked, *seen):
        if asked is legs[1] and fabrics.live(ctx, asked.nqn):
            raise OSError(errno.EIO, "sysfs is broken")
        return real(ctx, asked, *seen)

    monkeypatch.setattr(legs_module, "usable", broken)
    with pytest.raises(OSError, match="sysfs is broken"):
        paths.connect_legs(kernel.context(), volume(*legs), legs)
    kernel.sim.finish()
    assert kernel.controllers() == []
    kernel.refusing["delete_controller"] = errno.EPERM
    with pytest.raises(OSError, match="sysfs is broken"):
        paths.connect_legs(kernel.context(), volume(*legs), legs)
    assert "What a failed attach" in caplog.text


def test_release_while_one_node_is_silent(kernel, legs):
    for noticed in (True, False):
        ctx = kernel.context()
        paths.connect_legs(ctx, volume(*legs), legs)
        kernel.go(address(0), SILENT, noticed)
        before = kernel.sim.now
        paths.release_legs(ctx, volume(*legs), legs)
        assert kernel.sim.now - before < 2.5
        assert kernel.devices() == []
        kernel.go(address(0), LIVE)
        kernel.sim.finish()
        assert kernel.controllers() == []


def test_a_silent_release_holds_up_no_attach_elsewhere(kernel, legs):
    ctx = kernel.context()
    paths.connect_legs(ctx, volume(legs[0]), legs[:1])
    kernel.go(address(0), SILENT, noticed=False)
    call = waiting.Call(ctx, lambda: paths.release_legs(ctx, volume(legs[0]), legs[:1]), "release")
    before = kernel.sim.now
    (outcome,) = paths.connect_legs(ctx, volume(legs[1]), legs[1:])
    assert outcome.device
    assert kernel.sim.now - before < 0.5
    assert call.wait(waiting.Deadline(ctx.clock, 10))
    call.result()
    kernel.sim.finish()


def test_a_held_leg_is_not_released(kernel, legs):
    ctx = kernel.context()
    outcomes = paths.connect_legs(ctx, volume(*legs), legs)
    kernel.hold(outcomes[0].device.name)
    with pytest.raises(errors.StillInUseError, match="md127") as caught:
        paths.release_legs(ctx, volume(*legs), legs)
    for part in (V, legs[0].uuid, "node0"):
        assert part in str(caught.value)
    # The other one went.
    assert kernel.controllers() == [(nqn(0), address(0))]
    paths.release_legs(ctx, volume(*legs), legs, force=True)
    assert kernel.controllers() == []


def test_a_delete_that_is_refused(kernel, legs):
    ctx = kernel.context()
    paths.connect_legs(ctx, volume(legs[0]), legs[:1])
    kernel.refusing["delete_controller"] = errno.EPERM
    before = kernel.sim.now
    with pytest.raises(errors.StillInUseError, match="Operation not permitted"):
        paths.release_legs(ctx, volume(legs[0]), legs[:1])
    assert kernel.sim.now - before < 1


def test_the_detach_of_another_volume_takes_the_connection_away(kernel, legs, monkeypatch):
    """Between finding the device and the lock."""
    real, cuts = legs_module.usable, []

    def found(ctx, asked, *seen):
        device = real(ctx, asked, *seen)
        if device and not cuts and not any("subsystem" in name for name in ctx.locks.taken):
            cuts.append(device)
            kernel.nvme.drop(next(iter(kernel.nvme.controllers.values())))
        return device

    monkeypatch.setattr(legs_module, "usable", found)
    (outcome,) = paths.connect_legs(kernel.context(), volume(legs[0]), legs[:1])
    assert outcome.device
    assert len(cuts) == 1
    assert kernel.nvme.ever == 2
    assert kernel.devices() == [outcome.device.name]


def test_a_device_that_never_stays_long_enough(kernel, legs, monkeypatch):
    def gone(self, device):
        kernel.sim.sleep(1)
        return False

    monkeypatch.setattr(legs_module.LegConnect, "_confirmed", gone)
    before = kernel.sim.now
    (outcome,) = paths.connect_legs(kernel.context(), volume(legs[0]), legs[:1])
    assert 14 <= kernel.sim.now - before < 16
    assert "lost again and again" in str(outcome.error)
    assert outcome.unreachable
    paths.undo(kernel.context(), [outcome])
    assert kernel.controllers() == []


def test_cut(kernel, legs):
    """Connections of stock wait without end; ours fail by themselves and stay."""
    host = kernel.context().host_nqn
    kernel.fabrics(f"transport=tcp,traddr={address(0)},trsvcid=4420,nqn={nqn(0)},hostnqn={host}")
    ctx = kernel.context()
    paths.connect_legs(ctx, volume(legs[1]), legs[1:])
    paths.cut(ctx, legs)
    assert len(kernel.controllers()) == 2
    for node in range(2):
        kernel.go(address(node), SILENT)
    paths.cut(ctx, legs)
    assert kernel.controllers() == [(nqn(1), address(1))]


def test_grown(kernel, legs):
    ctx = kernel.context()
    outcomes = paths.connect_legs(ctx, volume(*legs), legs)
    target = kernel.targets[nqn(0)]
    target.quiet = True
    target.resize(legs[0].uuid, 2 * GIB)
    device = outcomes[0].device
    assert paths.offered_size(ctx, device) == 2 * GIB
    before = kernel.sim.now
    assert paths.grown(ctx, device, 2 * GIB) == 2 * GIB
    assert kernel.sim.now - before < 0.1
    assert paths.grown(ctx, device, GIB) == 2 * GIB
    with pytest.raises(errors.SizeError, match="should have"):
        paths.grown(ctx, device, 3 * GIB)
    target.unpublish(legs[0].uuid)
    for each in kernel.nvme.controllers.values():
        kernel.nvme.scan(each)
    with pytest.raises(errors.SizeError, match="not known"):
        paths.offered_size(ctx, device)


def test_a_path_that_comes_late_stays_with_multipath(tmp_path):
    kernel = make(tmp_path, nodes=1, count=2)
    kernel.targets[nqn(0)].publish(UUID.format(0))
    kernel.nodes[address(0, 1)] = FROZEN
    two = leg(0, UUID.format(0), count=2)
    kernel.sim.after(20, lambda: kernel.nodes.update({address(0, 1): LIVE}))
    before = kernel.sim.now
    outcomes = paths.connect_legs(kernel.context(connect_timeout=30), volume(two), [two])
    assert outcomes[0].device
    assert kernel.sim.now - before < 22
    kernel.sim.finish()
    assert len(kernel.controllers()) == 2
    paths.release_legs(kernel.context(), volume(two), [two])
    assert kernel.controllers() == []


def test_without_multipath_the_next_portal_takes_over(tmp_path):
    """Both answer TCP, and the first one's connect is refused."""
    kernel = Kernel(tmp_path, multipath=False)
    target = kernel.target(nqn(0), ("tcp", address(0, 1), "4420"))
    kernel.nodes[address(0)] = LIVE
    target.publish(UUID.format(0))
    two = leg(0, UUID.format(0), count=2)
    for seed in range(4):
        kernel.sim._random.seed(seed)
        outcomes = paths.connect_legs(kernel.context(), volume(two), [two])
        assert outcomes[0].device
        paths.undo(kernel.context(), outcomes)
        assert kernel.controllers() == []


@pytest.mark.parametrize("multipath", [True, False])
def test_another_portal_serves_while_one_reconnects(tmp_path, multipath):
    kernel = make(tmp_path, nodes=1, multipath=multipath, count=2)
    kernel.targets[nqn(0)].publish(UUID.format(0))
    two = leg(0, UUID.format(0), count=2)
    one = dataclasses.replace(two, portals=two.portals[:1])
    paths.connect_legs(kernel.context(), volume(one), [one])
    kernel.go(address(0), SILENT)
    before = kernel.sim.now
    (outcome,) = paths.connect_legs(kernel.context(), volume(two), [two])
    assert outcome.device.name in kernel.devices()
    assert kernel.sim.now - before < 1.5
    # A shared head is kept by the live path; otherwise the new device is the one of that path.
    assert outcome.device.name == ("nvme0n1" if multipath else "nvme1n1")
    paths.release_legs(kernel.context(), volume(two), [two])
    assert (kernel.controllers(), kernel.devices()) == ([], [])


def test_without_multipath_all_portals_refuse(tmp_path):
    kernel = Kernel(tmp_path, multipath=False)
    kernel.nodes.update({address(0): LIVE, address(0, 1): LIVE})
    two = leg(0, UUID.format(0), count=2)
    (outcome,) = paths.connect_legs(kernel.context(), volume(two), [two])
    assert str(outcome.error).count("refuses this host") == 2


def test_the_same_portal_twice_is_one(tmp_path):
    kernel = make(tmp_path, nodes=1)
    kernel.targets[nqn(0)].publish(UUID.format(0))
    one = leg(0, UUID.format(0))
    twice = dataclasses.replace(one, portals=one.portals * 2)
    assert paths.connect_legs(kernel.context(), volume(twice), [twice])[0].device
    assert kernel.nvme.ever == 1


def test_a_round_that_was_left_may_serve_the_next(tmp_path):
    """Without multipath the next attach waits for it instead of making another one."""
    kernel = make(tmp_path, nodes=1, multipath=False, count=2)
    kernel.targets[nqn(0)].publish(UUID.format(0))
    two = leg(0, UUID.format(0), count=2)
    ctx = kernel.context()
    kernel.nodes[address(0)] = FROZEN
    first = dataclasses.replace(two, portals=two.portals[:1])
    race = portals.Race(
        ctx, first, conf.time_outs(ctx.conf, "plain"), waiting.Deadline(ctx.clock, 1)
    )
    race.start()
    assert not race.one.wait(1)
    assert race.leave() == []
    kernel.nodes[address(0)] = LIVE
    second = dataclasses.replace(two, portals=two.portals[1:])
    (outcome,) = paths.connect_legs(ctx, volume(second), [second])
    kernel.sim.finish()
    assert outcome.device
    assert kernel.controllers() == [(nqn(0), address(0))]


def everything(kernel, volumes, ctx):
    """Attach all at once, and detach all at once."""
    for verb in (plain.attach, plain.detach):
        waiting.together(ctx, [lambda v=each, f=verb: f(ctx, v) for each in volumes], "volume")
        yield verb


@pytest.mark.parametrize("seed", range(6))
def test_sixteen_volumes_with_shared_subsystems(tmp_path, seed):
    """No controller is lost or left, in whatever order the threads run."""
    kernel = make(tmp_path, nodes=3, multipath=seed % 2 == 0, seed=seed, count=2)
    volumes = []
    for number in range(16):
        node = number % 3
        kernel.targets[nqn(node)].publish(UUID.format(number))
        own = leg(node, UUID.format(number), count=2)
        volumes.append(dataclasses.replace(volume(own), uuid=UUID.format(number + 100)))
    ctx = kernel.context()
    for verb in everything(kernel, volumes, ctx):
        kernel.sim.finish()
        if verb is plain.attach:
            assert len(kernel.controllers()) == (6 if kernel.multipath else 3)
            assert len(kernel.devices()) == 16
    assert (kernel.controllers(), kernel.devices()) == ([], [])


@pytest.mark.parametrize("seed", range(8))
def test_volumes_come_and_go_at_the_same_time(tmp_path, seed):
    """Half are attached while the other half is detached; none loses its device."""
    kernel = make(tmp_path, nodes=2, multipath=seed % 2 == 0, seed=seed)
    ctx = kernel.context()
    volumes = []
    for number in range(8):
        kernel.targets[nqn(number % 2)].publish(UUID.format(number))
        own = leg(number % 2, UUID.format(number))
        volumes.append(dataclasses.replace(volume(own), uuid=UUID.format(number + 100)))
    for each in volumes[:4]:
        plain.attach(ctx, each)

    def turn(number):
        verb = plain.detach if number < 4 else plain.attach
        return verb(ctx, volumes[number])

    waiting.together(ctx, [lambda n=number: turn(n) for number in range(8)], "volume")
    kernel.sim.finish()
    assert all(plain.paths(ctx, each) for each in volumes[4:])
    assert len(kernel.controllers()) == 2
    for each in volumes[4:]:
        plain.detach(ctx, each)
    assert (kernel.controllers(), kernel.devices()) == ([], [])


@pytest.mark.parametrize("late", [False, True])
def test_two_legs_killed_at_any_call_then_tried_again(tmp_path, late):
    for number in range(1000):
        kernel = make(tmp_path / f"{number}", seed=number)
        both = [leg(node, UUID.format(node)) for node in range(2)]
        for node in range(2):
            kernel.targets[nqn(node)].publish(UUID.format(node))
        kernel.kill_at, kernel.kill_late = number, late

        def attach(ctx, both=both):
            assert all(each.device for each in paths.connect_legs(ctx, volume(*both), both))

        def detach(ctx, both=both):
            paths.release_legs(ctx, volume(*both), both)

        killed = 0
        for verb in (attach, detach):
            try:
                verb(kernel.context())
            except Killed:
                killed += 1
                kernel.sim.bury()
                verb(kernel.context())
        kernel.sim.finish()
        assert (kernel.controllers(), kernel.devices()) == ([], []), number
        assert records.of(kernel.context(), nqn(0)) == {}
        if not killed:
            break
    assert 4 < number < 100
