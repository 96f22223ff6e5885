# SPDX-License-Identifier: Apache-2.0
"""The plan of a restore round for any record and any sight."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_node.lvm import made_tag, replica_name
from kumo_node.restore import Seen, plan
from kumo_node.spec import (
    CREATING,
    DELETING,
    READY,
    Data,
    ExportRecord,
    ReplicaRecord,
    SnapshotRecord,
    export_key,
)

UUIDS = ["a", "b", "c", "d"]
STATES = st.sampled_from([CREATING, READY, DELETING])


@st.composite
def records(draw):
    data = Data(persistent_id="p")
    for uuid in draw(st.sets(st.sampled_from(UUIDS))):
        target = draw(st.one_of(st.none(), st.just(2)))
        data.replicas[uuid] = ReplicaRecord(
            state=draw(STATES), volume_id="v", bytes=1, pool="p", token=uuid, target_bytes=target
        )
        if draw(st.booleans()):
            data.exports[export_key(uuid, "h")] = ExportRecord(
                state=draw(STATES), replica=uuid, host_nqn="h", io_class="plain", nsid=1
            )
    for uuid in draw(st.sets(st.sampled_from(UUIDS))):
        data.snapshots[uuid] = SnapshotRecord(
            state=draw(STATES), replica="a", snapshot_id="i", bytes=1, pool="p", token="t"
        )
    return data


@st.composite
def sights(draw):
    there = draw(st.sets(st.sampled_from(UUIDS)))
    active = draw(st.sets(st.sampled_from(UUIDS)))
    ours = draw(st.sets(st.sampled_from(UUIDS)))
    tags = {replica_name(u): frozenset([made_tag(u)] if u in ours else []) for u in there | active}
    return Seen(
        active=frozenset(replica_name(u) for u in active),
        complete=frozenset(export_key(u, "h") for u in draw(st.sets(st.sampled_from(UUIDS)))),
        tags=draw(st.sampled_from([{}, {"p": tags}])),
    )


@settings(max_examples=200, deadline=None)
@given(records(), sights())
def test_what_was_answered_is_kept_and_the_rest_undone(data, seen):
    made = plan(data, seen)
    for names, held in (
        (made.undo_replicas, data.replicas),
        (made.undo_snapshots, data.snapshots),
        (made.undo_exports, data.exports),
    ):
        assert set(names) == {name for name, record in held.items() if record.state != READY}
    assert {data.exports[key].state for key in made.apply_exports} <= {READY}
    assert {data.exports[key].replica for key in made.apply_exports}.isdisjoint(made.lost)
    assert {data.replicas[uuid].state for uuid in made.finish_resizes} <= {READY}
    ready = {uuid for uuid, record in data.replicas.items() if record.state == READY}
    assert set(made.activate) == {
        uuid for uuid in ready - set(made.lost) if replica_name(uuid) not in seen.active
    }


@settings(max_examples=200, deadline=None)
@given(records(), sights())
def test_only_a_definite_answer_makes_a_replica_lost(data, seen):
    made = plan(data, seen)
    if not seen.tags:
        assert made.lost == ()
    for uuid in made.lost:
        assert made_tag(uuid) not in seen.tags["p"].get(replica_name(uuid), frozenset())
        assert replica_name(uuid) not in seen.active


@settings(max_examples=100, deadline=None)
@given(records())
def test_nothing_is_planned_when_all_is_as_it_should_be(data):
    for held in (data.replicas, data.snapshots, data.exports):
        for name, record in list(held.items()):
            if record.state != READY:
                del held[name]
    for uuid, record in data.replicas.items():
        data.replicas[uuid] = record.model_copy(update={"target_bytes": None})
    for key, export in list(data.exports.items()):
        if export.replica not in data.replicas:
            del data.exports[key]
    active = frozenset(replica_name(uuid) for uuid in data.replicas)
    assert not plan(data, Seen(active, frozenset(data.exports)))
