# SPDX-License-Identifier: Apache-2.0
"""What is on the node and in no record is told once and never touched."""

from hypothesis import given
from hypothesis import strategies as st

from kumo_client import errors
from kumo_node.strangers import unknown_namespaces
from tests.unit.node.conftest import export, replica, snapshot, uid

R1, R2, S1 = uid(1), uid(2), uid(0x51)


def test_volumes_that_look_like_ours(machine, node, caplog):
    node.replicas.put(R1, replica())
    node.snapshots.put(S1, snapshot(R1))
    machine.host.foreign_lv("theirs")
    node.restore.strangers.look()
    assert node.problems() == []
    machine.host.foreign_lv(f"r-{R2}")
    machine.host.foreign_lv("tagged", tags=["kumo"])
    for _ in range(2):
        node.restore.strangers.look()
    (problem,) = node.info().problems
    assert problem.endswith(f": r-{R2}, tagged")
    assert caplog.text.count("not on record") == 1
    assert node.restore.round() == []
    assert machine.host.names() == {f"r-{R1}", f"s-{S1}", f"r-{R2}", "tagged", "theirs"}
    for number in range(10):
        machine.host.foreign_lv(f"s-{uid(0x100 + number)}")
    node.restore.strangers.look()
    assert node.problems()[0].endswith("and 7 more")


def test_what_lvm_did_not_tell_stays_as_it_was(machine, node):
    machine.host.foreign_lv(f"r-{R2}")
    node.restore.strangers.look()
    before = node.problems()
    del machine.host.vgs["kumo"].lvs[f"r-{R2}"]
    machine.host.fail = [("^lvs", "hang")]
    node.restore.strangers.look()
    assert node.problems() == before
    node.restore.strangers.look()
    assert node.problems() == []


def test_namespaces_in_our_subsystems_and_subsystems_like_ours(machine, node):
    fs = machine.nvmet
    node.replicas.put(R1, replica())
    ours = node.exports.put(R1, export()).subsystem_nqn
    fs.mkdir("subsystems", ours, "namespaces", "7")
    fs.mkdir("subsystems", "nqn.theirs")
    fs.mkdir("subsystems", "nqn.theirs", "namespaces", "1")
    fs.mkdir("subsystems", "nqn.like")
    fs.write("Kumo", "subsystems", "nqn.like", "attr_model")
    fs.mkdir("subsystems", "nqn.like", "namespaces", "3")
    node.restore.strangers.look()
    (problem,) = node.problems()
    assert problem.endswith(f": {', '.join(sorted([f'{ours}/7', 'nqn.like/3']))}")
    assert fs.exists("subsystems", ours, "namespaces", "7")
    node.exports.delete(R1, None)
    # The subsystem is still somebody's.
    assert fs.exists("subsystems", ours, "namespaces", "7")


def test_a_subsystem_that_goes_away_meanwhile(machine, node, monkeypatch):
    machine.nvmet.mkdir("subsystems", "nqn.theirs")

    def gone(*parts):
        raise FileNotFoundError(parts)

    monkeypatch.setattr(machine.nvmet, "read", gone)
    node.restore.strangers.look()
    assert node.problems() == []


def test_the_loop_compares_now_and_then(machine, node, monkeypatch):
    looks = []
    monkeypatch.setattr("kumo_node.restore._COMPARE_SECONDS", -1)
    monkeypatch.setattr(node.restore, "interval", 0.001)

    def look():
        looks.append(1)
        node.restore._stop.set()
        raise errors.InternalError("odd")

    monkeypatch.setattr(node.restore.strangers, "look", look)
    node.restore.start()
    node.restore._thread.join(5)
    assert looks == [1]


NSIDS = st.dictionaries(st.sampled_from("abc"), st.sets(st.integers(1, 4)))


@given(NSIDS, NSIDS)
def test_only_what_is_there_and_in_no_record_is_told(wanted, seen):
    told = set(unknown_namespaces(wanted, seen))
    for name, nsids in seen.items():
        for nsid in nsids:
            assert (f"{name}/{nsid}" in told) == (nsid not in wanted.get(name, set()))
    assert len(told) <= sum(map(len, seen.values()))


def test_a_look_costs_one_report_for_a_pool(machine, node):
    for number in range(1, 5):
        node.replicas.put(uid(number), replica(4))
    start = len(machine.host.log)
    node.restore.strangers.look()
    assert [line.split()[0] for line in machine.host.log[start:]] == ["lvs"]
