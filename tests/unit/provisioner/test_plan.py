# SPDX-License-Identifier: Apache-2.0
"""The plan for one node: properties over random records and inventories."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client.schemas.node import Export, Inventory, Limits, NodeSnapshot, Replica
from kumo_provisioner.db.models import REPLICA, SNAPSHOT
from kumo_provisioner.reconcile.plan import (
    AddExport,
    DropExport,
    NoteState,
    Remove,
    Report,
    SetLimits,
    Wanted,
    WantedReplica,
    plan,
)

UUIDS = [f"u{number}" for number in range(8)]
NQNS = ["nqn.a", "nqn.b"]
HOSTS = st.frozensets(st.sampled_from(NQNS), max_size=2)
CAPS = st.sampled_from([(0, 0), (100, 5)])


def replica_row(uuid):
    return st.builds(
        WantedReplica,
        uuid=st.just(uuid),
        volume_id=st.sampled_from(["v1", "v2"]),
        settled=st.booleans(),
        absent=st.booleans(),
        hosts=HOSTS,
        limits=st.none() | CAPS,
    )


@st.composite
def records(draw):
    replicas, parts, pending, gone, elsewhere = {}, set(), {}, set(), set()
    kinds = ["replica", "part", "pending", "gone", "elsewhere", "nothing"]
    for uuid in UUIDS:
        kind = draw(st.sampled_from(kinds))
        if kind == "replica":
            replicas[uuid] = draw(replica_row(uuid))
        elif kind == "pending":
            pending[uuid] = draw(st.sampled_from([REPLICA, SNAPSHOT]))
        else:
            {"part": parts, "gone": gone, "elsewhere": elsewhere}.get(kind, set()).add(uuid)
    return Wanted(replicas, frozenset(parts), pending, frozenset(gone), frozenset(elsewhere))


def shown_replica(uuid, hosts=(), limits=(0, 0)):
    exports = [
        Export(replica=uuid, host_nqn=nqn, io_class="plain", subsystem_nqn="nqn.s", nsid=1)
        for nqn in hosts
    ]
    caps = Limits(max_iops=limits[0], max_bw=limits[1])
    return Replica(uuid=uuid, volume_id="v", bytes=1, pool="p", exports=exports, limits=caps)


@st.composite
def inventories(draw):
    held = draw(st.lists(st.sampled_from(UUIDS), unique=True, max_size=6))
    cut = draw(st.integers(0, len(held)))
    snapshots = [
        NodeSnapshot(uuid=uuid, replica="r", snapshot_id="s", bytes=1, pool="p")
        for uuid in held[cut:]
    ]
    replicas = [shown_replica(uuid, draw(HOSTS), draw(CAPS)) for uuid in held[:cut]]
    return Inventory(persistent_id="n1", replicas=replicas, snapshots=snapshots)


@settings(max_examples=250, deadline=None)
@given(records(), inventories())
def test_nothing_wanted_unknown_or_elsewhere_is_removed(wanted, inventory):
    for action in plan(wanted, inventory):
        if isinstance(action, Remove):
            assert action.uuid in {*wanted.pending, *wanted.gone}
        elif isinstance(action, Report):
            known = {*wanted.replicas, *wanted.parts, *wanted.pending, *wanted.gone}
            assert action.uuid not in known | wanted.elsewhere
        else:
            assert wanted.replicas[action.replica_id].settled


@settings(max_examples=250, deadline=None)
@given(records(), inventories())
def test_after_the_plan_the_node_shows_what_is_wanted(wanted, inventory):
    """Carry the plan out on what was seen; a second plan then has only reports left."""
    held = {
        one.uuid: [{export.host_nqn for export in one.exports}, one.limits]
        for one in inventory.replicas
    }
    snapshots = {one.uuid for one in inventory.snapshots}
    rows, pending, gone = dict(wanted.replicas), dict(wanted.pending), set(wanted.gone)
    for action in plan(wanted, inventory):
        if isinstance(action, Remove):
            held.pop(action.uuid, None)
            snapshots.discard(action.uuid)
            pending.pop(action.uuid, None)
            gone.add(action.uuid)
        elif isinstance(action, AddExport):
            held[action.replica_id][0].add(action.host_nqn)
        elif isinstance(action, DropExport):
            held[action.replica_id][0].remove(action.host_nqn)
        elif isinstance(action, NoteState):
            old = rows[action.replica_id]
            rows[old.uuid] = dataclasses.replace(old, absent=not action.present)
        elif isinstance(action, SetLimits):
            iops, bw = rows[action.replica_id].limits
            held[action.replica_id][1] = Limits(max_iops=iops, max_bw=bw)
    again = Inventory(
        persistent_id="n1",
        replicas=[
            shown_replica(uuid, hosts, (caps.max_iops, caps.max_bw))
            for uuid, (hosts, caps) in held.items()
        ],
        snapshots=[one for one in inventory.snapshots if one.uuid in snapshots],
    )
    left = Wanted(rows, wanted.parts, pending, frozenset(gone), wanted.elsewhere)
    rest = plan(left, again)
    assert all(isinstance(action, Report) for action in rest)


def test_an_object_that_came_late_is_removed_and_a_strange_one_is_not():
    shown = [shown_replica("late"), shown_replica("strange"), shown_replica("moved")]
    wanted = Wanted({}, gone=frozenset(["late"]), elsewhere=frozenset(["moved"]))
    assert plan(wanted, Inventory(persistent_id="n1", replicas=shown)) == [
        Remove(REPLICA, "late"),
        Report(REPLICA, "strange", 1),
    ]
