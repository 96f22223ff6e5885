# SPDX-License-Identifier: Apache-2.0
"""The whole agent on a faked host: kernel, md, mdadm, nodes and a provisioner."""

import errno
import json

import pytest

from os_brick_nvmeof.agent import hold, model, status
from tests.fakes.host_arrays import Member
from tests.fakes.host_sim import Killed
from tests.unit.brick.agent.stories import GOOD, A, B, C, records
from tests.unit.brick.volumes import VOLUME


def test_a_good_volume_is_left_alone(host, run):
    run.rounds(3)
    assert run.rounds(3) == []
    assert (run.volume()["state"], run.volume()["array"]) == (status.GOOD, "md127")
    assert host.in_sync() == {A, B}


def test_a_leg_that_was_lost_comes_back_by_itself(host, run):
    run.lose()
    assert run.round()[0] == "ReportArray"
    assert records(host)[B] == ("Missing", "stale")
    assert run.volume()["state"] == status.DEGRADED
    host.back(1)
    host.settle(3)
    done = run.rounds(4)
    assert done.count("ReAdd") == 1
    assert host.in_sync() == {A, B}
    assert host.md.read("md127") == {b"second"}
    assert records(host) == {A: GOOD, B: GOOD}
    (healed,) = run.agent.known.history.entries
    assert (healed.leg, healed.kind, healed.ok) == (B, "partial", True)
    assert healed.end > healed.start > healed.lost
    assert [one["leg"] for one in run.volume()["healed"]] == [B]
    assert ("INFO", f"healed: volume {VOLUME}") in host.storage.told
    assert run.volume()["last"]["kind"] in ("ReAdd", "ReportArray")


def test_a_report_is_repeated_only_if_the_provisioner_does_not_show_it(host, run):
    run.lose()
    assert "ReportArray" in run.round()

    def reports():
        return [one.kind for one in run.agent.round().actions if one.kind == "ReportArray"]

    # What was pulled before the report says the old state.
    assert reports() == []
    run.agent.asking.pull()
    assert reports() == []
    next(one for one in host.storage.records if one.uuid == B).state = "Available"
    run.agent.asking.pull()
    assert reports() == ["ReportArray"]


def test_a_look_while_mdadm_works_does_not_end_a_healing(host, run, monkeypatch):
    run.lose()
    run.rounds(2)
    host.back(1)
    host.settle(3)
    do = run.agent.hands.do

    def slow(volume, action):
        if action.kind == "ReAdd":
            host.settle(1)
            run.agent.round()
            assert [one.end for one in run.agent.known.history.entries] == [0.0]
        return do(volume, action)

    monkeypatch.setattr(run.agent.hands, "do", slow)
    run.rounds(5)
    (healed,) = run.agent.known.history.entries
    assert (healed.leg, healed.ok) == (B, True)
    assert not [one for one in host.storage.told if "lost again" in str(one)]


def test_a_report_that_got_lost_is_repeated(host, run):
    run.lose()
    host.storage.away = True
    run.rounds(1)
    assert not run.agent.known.memory.told
    host.storage.away = False
    assert "ReportArray" in run.rounds(3)
    assert records(host)[B] == ("Missing", "stale")


def test_a_leg_that_stays_away_is_replaced_and_its_namespace_given_up(host, run):
    run.lose()
    done = run.rounds(40, 5)
    assert done.count("AskReplacement") == 1
    assert host.in_sync() == {A, C}
    assert records(host) == {A: GOOD, C: GOOD}
    assert host.md.arrays["md127"].places == 2
    assert host.md.read("md127") == {b"second"}
    assert ("nqn.1", "10.0.0.2") not in host.kernel.controllers()


def test_a_leg_moves_and_there_are_always_two(host, run):
    run.rounds(2)
    tags = {"volId": VOLUME, "replicaId": B}
    host.storage.tasks["t"] = model.Task("t", model.MIGRATION, model.IDLE, "", 0.0, tags)
    for _ in range(20):
        run.round()
        assert len(host.in_sync()) >= 2
    assert host.storage.tasks["t"].state == model.FINISHED
    assert host.in_sync() == {A, C}
    assert host.md.arrays["md127"].places == 2


def test_an_idle_array_goes_on_without_a_leg_that_is_dead(host, run):
    host.md.idle("md127")
    run.rounds(2)
    host.hide(1)
    assert "FailLeg" in run.rounds(6)
    assert host.in_sync() == {A}


def test_a_foreign_leg_is_refused(host, run):
    run.lose()
    host.at_node(1).blocks[4096] = b"\1" * 4096
    host.back(1)
    host.settle(3)
    assert "ReAdd" not in run.rounds(4)
    assert "refused: it holds other data" in [note["text"] for note in run.volume()["notes"]]


def test_without_the_provisioner_it_heals_what_needs_no_decision(host, run):
    run.rounds(2)
    host.storage.away = True
    host.hide(1)
    host.md.write("md127", b"second")
    run.rounds(3)
    host.back(1)
    host.settle(3)
    run.start()
    assert run.agent.known.wanted.stale
    assert "ReAdd" in run.rounds(3)
    assert host.in_sync() == {A, B}
    assert run.shown["provisioner"]["away"]
    host.storage.away = False
    run.rounds(3)
    assert records(host) == {A: GOOD, B: GOOD}


def test_what_was_asked_for_survives_a_kill(host, run):
    run.lose()
    lost = host.storage.request_replacement
    asked = []

    def dies(volume, leg):
        asked.append(leg)
        lost(volume, leg)
        raise KeyboardInterrupt

    host.storage.request_replacement = dies
    with pytest.raises(KeyboardInterrupt):
        run.rounds(40, 5)
    host.storage.request_replacement = lost
    run.start()
    assert run.agent.known.memory.asked[B].new == ""
    run.rounds(30, 5)
    assert asked == [B]
    assert host.in_sync() == {A, C}


def test_all_legs_away_for_a_while(host, run):
    run.rounds(2)
    host.hide(0)
    host.hide(1)
    host.md.write("md127", b"second")
    run.rounds(5, 2)
    assert run.volume()["state"] == status.FAILED
    host.back(0)
    host.back(1)
    host.settle(3)
    run.rounds(6)
    assert host.in_sync() == {A, B}
    assert records(host) == {A: GOOD, B: GOOD}
    assert len(host.md.read("md127")) == 1


def test_a_link_that_flaps(host, run):
    run.rounds(2)
    before = len(host.kernel.controllers())
    for number in range(20):
        host.hide(1)
        if number % 3:
            host.md.write("md127", f"{number}".encode())
        run.rounds(number % 4, 0.7)
        host.back(1)
        run.rounds((number * 7) % 5, 0.6)
    run.rounds(10)
    assert host.in_sync() == {A, B}
    assert host.md.read("md127") == {b"19"}
    assert len(host.kernel.controllers()) == before
    assert list(host.md.arrays) == ["md127"]
    assert not [call for call in host.storage.calls if call[0] == "replace"]


def heals_with_kills(host, run, away, every):
    """Kill the agent at every so many of its calls to the host."""
    run.lose()
    killed = 0
    for number in range(60):
        if number == away:
            host.back(1)
        if host.kernel.kill_at is None:
            host.kernel.kill_at = len(host.kernel.calls) + every
        host.kernel.kill_late = bool(killed % 2)
        try:
            run.round(2)
        except Killed:
            killed += 1
            host.kernel.kill_at = None
            host.kernel.sim.bury()
            run.start()
            hold.release_all(host.ctx, list(host.md.arrays))
    host.kernel.kill_at = None
    run.rounds(20, 5)
    return killed


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("away", [3, 99])
def test_it_may_be_killed_at_any_moment(host, run, away, every):
    assert heals_with_kills(host, run, away, every)
    assert len(host.in_sync()) == 2
    assert A in host.in_sync()
    assert set(records(host).values()) == {GOOD}
    assert host.md.read("md127") == {b"second"}
    replaced = [call for call in host.storage.calls if call[0] == "replace"]
    assert len(replaced) == (0 if away == 3 else 1)


def test_nothing_is_asked_for_when_the_intent_cannot_be_written(host, run, monkeypatch):
    run.lose()
    run.rounds(5, 5)

    def full(_memory):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.agent.store, "save_memory", full)
    run.rounds(20, 5)
    assert not [call for call in host.storage.calls if call[0] == "replace"]


def test_a_controller_of_stock_gets_our_time_outs(host, run):
    name = next(iter(host.kernel.nvme.controllers.values())).name
    path = host.kernel.root / "sys/class/nvme" / name / "ctrl_loss_tmo"
    path.write_text("600\n")
    assert "SetTimeOuts" in run.round()
    assert path.read_text() == "off\n"


def test_time_outs_that_the_kernel_refuses_are_tried_again_later(host, run):
    name = next(iter(host.kernel.nvme.controllers.values())).name
    (host.kernel.root / "sys/class/nvme" / name / "ctrl_loss_tmo").write_text("600\n")
    host.kernel.refusing["ctrl_loss_tmo"] = errno.EIO
    assert "SetTimeOuts" in run.round(0.1)
    assert "SetTimeOuts" not in run.round(0.1)
    (failing,) = run.shown["waiting"]
    assert "did not take the time-outs" in failing["error"]


def test_a_portal_is_connected_again(host, run):
    run.lose()
    run.round()
    for one in list(host.kernel.nvme.controllers.values()):
        if one.options["traddr"] == host.address(1):
            host.kernel.nvme.set_state(one, "deleting")
            host.kernel.nvme.leave(one)
            host.kernel.nvme.drop(one)
    assert "Reconnect" in run.round()
    host.back(1)
    run.rounds(12)
    assert host.in_sync() == {A, B}


def test_md_holds_a_faulty_leg_for_a_while(host, run):
    run.lose()
    run.round()
    host.back(1)
    host.settle(3)
    device = next(name for name, one in host.md.arrays["md127"].members.items() if one.faulty)
    host.md.busy[device] = 3
    assert "ReAdd" in run.rounds(2)
    run.round()
    assert host.in_sync() == {A, B}


def test_what_udev_made_of_a_leg_alone_is_stopped(host, run):
    run.lose()
    run.round()
    device = next(name for name, one in host.md.arrays["md127"].members.items() if one.faulty)
    host.kernel.write(f"/sys/class/block/md127/md/dev-{device}/state", "remove")
    host.back(1)
    host.settle(3)
    stray = host.md._new(VOLUME, "any:volume-1", 2, host.md.arrays["md127"].size)
    stray.members[device] = Member(1, 1)
    host.md._hold(stray)
    run.rounds(4)
    assert list(host.md.arrays) == ["md127"]
    assert host.in_sync() == {A, B}


def test_mdadm_that_fails_is_tried_again(host, run):
    run.lose()
    run.round()
    host.back(1)
    host.settle(3)
    host.md.fails = {"--re-add": "no", "--add-spare": "no"}
    run.rounds(2, 0.2)
    assert host.in_sync() == {A}
    assert run.agent.known.history.entries == []
    run.rounds(4)
    assert host.in_sync() == {A, B}


def test_a_detach_that_came_first_is_not_undone(host, run):
    run.lose()
    run.round()
    host.back(1)
    host.settle(3)
    run.agent.asking.pull()
    made = run.agent.round()
    host.detach()
    for action in made.actions:
        run.agent.perform(action)
    assert host.md.arrays == {}
    assert host.kernel.controllers() == []


def test_the_status_is_json_and_a_table(host, run, capsys):
    run.lose()
    run.round()
    json.dumps(run.shown)
    status.show(status.table(run.shown, run.shown["time"] + 100))
    status.show(status.plan_table(run.shown))
    out = capsys.readouterr().out
    assert "This is 100 s old: is the agent running?" in out
    assert "degraded" in out
    assert "md127" in out
    assert "ReportArray" in out
