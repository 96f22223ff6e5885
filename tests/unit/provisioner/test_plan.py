# SPDX-License-Identifier: Apache-2.0
"""The plan of a reconcile: properties over random records and nodes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client.schemas.node import Export, Inventory, NodeSnapshot, Replica
from kumo_client.schemas.volume import REPLICA_MISSING
from kumo_provisioner import reconcile
from kumo_provisioner.db.models import REPLICA, SNAPSHOT
from kumo_provisioner.reconcile import (
    AddExport,
    DropExport,
    NoteState,
    Remove,
    Report,
    Wanted,
    WantedRemoval,
    WantedReplica,
)

NODES = ["n1", "n2", "n3"]
UUIDS = [f"u{number}" for number in range(8)]
NQNS = ["nqn.a", "nqn.b"]
HOSTS = st.frozensets(st.sampled_from(NQNS), max_size=2)


def replica_row(uuid):
    return st.builds(
        WantedReplica,
        uuid=st.just(uuid),
        volume_id=st.sampled_from(["v1", "v2"]),
        backend_id=st.sampled_from(NODES),
        settled=st.booleans(),
        absent=st.booleans(),
        hosts=HOSTS,
    )


@st.composite
def records(draw):
    replicas, parts, removals = {}, {}, {}
    for uuid in UUIDS:
        kind = draw(st.sampled_from(["replica", "part", "removal", "nothing"]))
        node = draw(st.sampled_from(NODES))
        if kind == "replica":
            replicas[uuid] = draw(replica_row(uuid))
        elif kind == "part":
            parts[uuid] = node
        elif kind == "removal":
            what = draw(st.sampled_from([REPLICA, SNAPSHOT]))
            removals[uuid] = WantedRemoval(uuid, what, node, draw(st.booleans()))
    return Wanted(replicas, parts, removals)


def shown_replica(uuid, hosts):
    exports = [
        Export(replica=uuid, host_nqn=nqn, io_class="plain", subsystem_nqn="nqn.s", nsid=1)
        for nqn in hosts
    ]
    return Replica(uuid=uuid, volume_id="v", bytes=1, pool="pool", exports=exports)


@st.composite
def sights(draw):
    seen = {}
    for node in NODES:
        held = draw(st.lists(st.sampled_from(UUIDS), unique=True, max_size=5))
        cut = draw(st.integers(0, len(held)))
        snapshots = [
            NodeSnapshot(uuid=uuid, replica="r", snapshot_id="s", bytes=1, pool="pool")
            for uuid in held[cut:]
        ]
        seen[node] = Inventory(
            persistent_id=node,
            replicas=[shown_replica(uuid, draw(HOSTS)) for uuid in held[:cut]],
            snapshots=snapshots,
        )
        if draw(st.integers(0, 3)) == 0:
            seen[node] = None
    return seen


@settings(max_examples=250, deadline=None)
@given(records(), sights())
def test_nothing_wanted_or_unknown_is_removed(wanted, seen):
    for action in reconcile.plan(wanted, seen):
        if isinstance(action, Remove):
            assert action.uuid not in wanted.replicas
            assert action.uuid not in wanted.parts
            assert wanted.removals[action.uuid].backend_id == action.backend_id
        if isinstance(action, Report):
            assert action.uuid not in wanted.replicas | wanted.parts


@settings(max_examples=250, deadline=None)
@given(records(), sights())
def test_nothing_follows_from_a_node_that_did_not_answer(wanted, seen):
    silent = {node for node, inventory in seen.items() if inventory is None}
    for action in reconcile.plan(wanted, seen):
        if isinstance(action, Remove | Report):
            assert action.backend_id not in silent
        else:
            row = wanted.replicas[action.replica_id]
            assert row.backend_id not in silent
            assert row.settled


@settings(max_examples=250, deadline=None)
@given(records(), sights())
def test_after_the_plan_the_nodes_show_what_is_wanted(wanted, seen):
    """Carry the plan out on what was seen; a second plan then has only reports left."""
    held = {
        node: {one.uuid: {export.host_nqn for export in one.exports} for one in inventory.replicas}
        for node, inventory in seen.items()
        if inventory is not None
    }
    snapshots = {
        node: {one.uuid for one in inventory.snapshots}
        for node, inventory in seen.items()
        if inventory is not None
    }
    rows, gone = dict(wanted.replicas), dict(wanted.removals)
    for action in reconcile.plan(wanted, seen):
        if isinstance(action, Remove):
            held[action.backend_id].pop(action.uuid, None)
            snapshots[action.backend_id].discard(action.uuid)
            gone[action.uuid] = WantedRemoval(action.uuid, action.kind, action.backend_id, True)
        elif isinstance(action, AddExport | DropExport):
            node = rows[action.replica_id].backend_id
            exports = held[node][action.replica_id]
            change = exports.add if isinstance(action, AddExport) else exports.remove
            change(action.host_nqn)
        elif isinstance(action, NoteState):
            old = rows[action.replica_id]
            rows[old.uuid] = WantedReplica(
                **vars(old) | {"absent": action.state == REPLICA_MISSING}
            )
    again = {
        node: None
        if inventory is None
        else Inventory(
            persistent_id=node,
            replicas=[shown_replica(uuid, hosts) for uuid, hosts in held[node].items()],
            snapshots=[one for one in inventory.snapshots if one.uuid in snapshots[node]],
        )
        for node, inventory in seen.items()
    }
    rest = reconcile.plan(Wanted(rows, wanted.parts, gone), again)
    assert all(isinstance(action, Report) for action in rest)


def test_an_object_that_came_late_is_removed_and_a_strange_one_is_not():
    wanted = Wanted({}, {}, {"late": WantedRemoval("late", REPLICA, "n1", done=True)})
    seen = {
        "n1": Inventory(
            persistent_id="n1",
            replicas=[shown_replica("late", ()), shown_replica("strange", ())],
        )
    }
    assert reconcile.plan(wanted, seen) == [
        Remove(REPLICA, "late", "n1"),
        Report(REPLICA, "strange", "n1"),
    ]
