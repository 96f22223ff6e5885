# SPDX-License-Identifier: Apache-2.0
"""Stories of replicas that are lost, replaced and reported, over node models."""

import uuid

import pytest

from kumo_client import errors
from kumo_client.schemas.host import (
    ABILITY_ARRAY_REPORT,
    ABILITY_FRESHNESS,
    ArrayReport,
    HostProbe,
    LegReport,
    PublishRequest,
    UnpublishRequest,
)
from kumo_client.schemas.volume import ReplicaAdd
from kumo_provisioner import reconcile, settling
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import hosts, publish, replicas, targets, volumes
from tests.unit.provisioner.conftest import NQN, add_node, volume
from tests.unit.provisioner.stories import T, node_of, ports, published, rows, shown

ADD = ReplicaAdd()
KNOWING = HostProbe(
    host_nqn=NQN, host_id="host-1", abilities=[ABILITY_FRESHNESS, ABILITY_ARRAY_REPORT]
)
CHECKING = HostProbe(host_nqn=NQN, host_id="host-1", abilities=[ABILITY_FRESHNESS])
OLD = HostProbe(host_nqn=NQN, host_id="host-1")


@pytest.fixture
def attached(core, four):
    """A volume of two replicas that a host of the old kind has."""
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    return uid


def places(core, uid):
    return {one.uuid: one for one in shown(core, uid).location}


def states(core, uid):
    return {key: (one.replica_state, one.freshness) for key, one in places(core, uid).items()}


def report(core, uid, leg, *some):
    for state in some:
        replicas.report(core, T, uid, leg, state)


def degraded(core, uid):
    """(the lost leg, the good leg)."""
    lost, good = places(core, uid)
    report(core, uid, lost, "Missing")
    return lost, good


def unpublish(core, uid, host="host-1"):
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id=host))


def kinds(core):
    return [row.type for row in rows(core, models.Event)]


# -- replacing a leg ------------------------------------------------------------------------------


def test_a_lost_leg_is_replaced_under_a_host(core, attached):
    lost, good = degraded(core, attached)
    assert states(core, attached)[lost] == ("Missing", "stale")
    new = replicas.add(core, T, attached, ADD)
    assert shown(core, attached).num_replicas == 3
    assert shown(core, attached).wanted_replicas == 2
    assert states(core, attached)[new] == ("Unknown", "blank")
    assert places(core, attached)[new].replaces == lost
    sizes = {
        held.bytes for one in core.nodes.models.values() for held in one.state.replicas.values()
    }
    assert len(core.nodes.objects()) == 3
    assert len(sizes) == 1
    # The next publish gives it to the host.
    assert (new, NQN) not in core.nodes.exports()
    assert published(core, attached).status == "AlreadyPublished"
    assert (new, NQN) in core.nodes.exports()
    report(core, attached, new, "Synchronizing")
    replicas.terminate(core, T, attached, lost)
    replicas.terminate(core, T, attached, lost)
    assert states(core, attached)[lost][0] == "Terminating"
    with pytest.raises(errors.LastReplicaError):
        replicas.terminate(core, T, attached, good)
    report(core, attached, new, "Available")
    replicas.confirm(core, T, attached, lost)
    with pytest.raises(errors.NotExistsError):
        replicas.confirm(core, T, attached, lost)
    assert states(core, attached) == dict.fromkeys([good, new], ("Available", "fresh"))
    assert core.nodes.objects() == {good, new}
    assert {"replica.added", "replica.state", "replica.terminating", "replica.removed"} <= set(
        kinds(core)
    )
    unpublish(core, attached)
    volumes.delete(core, T, attached)


def test_an_array_with_one_leg_left_keeps_its_class_and_names(core, attached):
    lost, good = degraded(core, attached)
    (before,) = [one for one in published(core, attached).replicas if one.uuid == good]
    replicas.terminate(core, T, attached, lost)
    replicas.confirm(core, T, attached, lost)
    for again in (False, True):
        answer = published(core, attached)
        (leg,) = answer.replicas
        assert leg.target_nqn == before.target_nqn
        assert answer.array_state == ("clean" if again else "open")
        assert (good, NQN) in core.nodes.exports()
        if not again:
            unpublish(core, attached)
    assert shown(core, attached).wanted_replicas == 2


def test_nothing_is_replaced_because_of_the_network(core, attached):
    lost, _ = degraded(core, attached)
    before = places(core, attached)
    away = [one.backend.persistent_id for one in before.values()]
    with core.db.write() as session:
        for backend_id in away:
            session.get_one(models.Backend, backend_id).state = "Unavailable"
    with pytest.raises(errors.BackendUnavailableError, match="it is the network") as caught:
        replicas.add(core, T, attached, ADD)
    assert caught.value.transient
    assert caught.value.node == before[lost].backend.persistent_id
    assert set(places(core, attached)) == set(before)
    with core.db.write() as session:
        session.get_one(models.Backend, away[0]).state = "Available"
        session.get_one(models.Backend, away[1]).state = "Available"
    replicas.add(core, T, attached, ADD)
    assert len(places(core, attached)) == 3


def test_nothing_is_replaced_for_a_node_in_maintenance_unless_the_place_is_named(core, attached):
    lost, _ = degraded(core, attached)
    before = places(core, attached)
    with core.db.write() as session:
        row = session.get_one(models.Backend, before[lost].backend.persistent_id)
        row.mode = models.MAINTENANCE
    with pytest.raises(errors.ConflictError, match="maintenance"):
        replicas.add(core, T, attached, ADD)
    assert set(places(core, attached)) == set(before)
    held = {one.backend.persistent_id for one in before.values()}
    free = next(
        one.persistent_id for one in core.nodes.models.values() if one.persistent_id not in held
    )
    added = replicas.add(core, T, attached, ReplicaAdd(backend_id=free))
    assert places(core, attached)[added].backend.persistent_id == free


def test_no_second_spare_and_never_five_legs(core, attached):
    lost, _ = degraded(core, attached)
    new = replicas.add(core, T, attached, ADD)
    with pytest.raises(errors.TooManyReplicasError, match="not in sync yet"):
        replicas.add(core, T, attached, ADD)
    report(core, attached, new, "Synchronizing", "Available")
    fourth = replicas.add(core, T, attached, ADD)
    report(core, attached, fourth, "Synchronizing", "Available")
    with pytest.raises(errors.TooManyReplicasError, match="more are not possible"):
        replicas.add(core, T, attached, ADD)
    assert len(places(core, attached)) == 4
    # With nobody who could confirm, a leg goes at once.
    unpublish(core, attached)
    replicas.terminate(core, T, attached, lost)
    assert lost not in places(core, attached)
    assert lost not in core.nodes.objects()


def test_a_spare_that_could_not_be_connected_gives_way_to_another(core, attached):
    degraded(core, attached)
    dead = replicas.add(core, T, attached, ADD)
    report(core, attached, dead, "Missing")
    with pytest.raises(errors.TooManyReplicasError, match="is Terminating now"):
        replicas.add(core, T, attached, ADD)
    replicas.confirm(core, T, attached, dead)
    assert replicas.add(core, T, attached, ADD) != dead


def test_a_leg_that_cannot_be_made_leaves_nothing(core, attached):
    degraded(core, attached)
    for port in core.nodes.models:
        core.nodes.faults[port, "put_replica"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        replicas.add(core, T, attached, ADD)
    core.nodes.faults.clear()
    reconcile.run(core)
    assert len(places(core, attached)) == len(core.nodes.objects()) == 2
    assert shown(core, attached).unsettled == ""


def test_a_leg_whose_making_was_cut_off_is_made_later(core, attached):
    degraded(core, attached)
    with core.db.write() as session:
        row = volumes.find(session, T, attached)
        new = replicas.begin(core, session, row, ADD)
    reconcile.run(core)
    assert new.uuid in core.nodes.objects()
    assert shown(core, attached).unsettled == ""


def test_only_what_a_node_lacks_is_made_later(core, attached):
    degraded(core, attached)
    with core.db.write() as session:
        new = replicas.begin(core, session, volumes.find(session, T, attached), ADD)
    port = ports(core, node_of(core, places(core, attached)[new.uuid]))
    core.nodes.faults[port, "replica"] = "lost request"
    with pytest.raises(errors.BackendUnavailableError):
        replicas.finish(core, attached)
    core.nodes.faults.clear()
    replicas.finish(core, attached)
    with core.db.write() as session:
        settling.add(volumes.find(session, T, attached), settling.REPLICAS)
    core.nodes.calls.clear()
    replicas.finish(core, attached)
    assert (port, "put_replica") not in core.nodes.calls


def test_every_change_of_a_volume_raises_its_generation(core, three):
    uid = volumes.create(core, T, volume(replicas=2))

    def generation():
        with core.db.read() as session:
            return session.get_one(models.Volume, uid).generation

    seen = [generation()]
    leg = next(iter(places(core, uid)))
    for change in (
        lambda: published(core, uid),
        lambda: report(core, uid, leg, "Missing"),
        lambda: volumes.extend(core, T, uid, 2),
        lambda: unpublish(core, uid),
    ):
        change()
        seen.append(generation())
    assert seen == sorted(set(seen))
    shown(core, uid)
    assert generation() == seen[-1]


def test_a_volume_gets_as_many_legs_as_are_wanted(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    for wanted in (3, 2):
        with core.db.write() as session:
            row = volumes.find(session, T, uid)
            row.num_replicas = wanted
            settling.add(row, settling.REPLICAS)
        reconcile.run(core)
        assert len(places(core, uid)) == wanted
        assert len(core.nodes.objects()) == wanted
        assert shown(core, uid).unsettled == ""
    assert set(states(core, uid).values()) == {("Available", "fresh")}
    replicas.finish(core, str(uuid.uuid4()))


@pytest.mark.parametrize("told", ["Missing", "Synchronizing"])
def test_a_leg_that_was_only_recorded_is_made_whatever_its_host_tells(
    core, attached, monkeypatch, told
):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(replicas, "make", die)
    with pytest.raises(KeyboardInterrupt):
        replicas.add(core, T, attached, ADD)
    monkeypatch.undo()
    (leg,) = [key for key, (_, fresh) in states(core, attached).items() if fresh == "blank"]
    report(core, attached, leg, told)
    assert leg not in core.nodes.objects()
    reconcile.run(core)
    assert leg in core.nodes.objects()
    assert states(core, attached)[leg][1] == "blank"


def test_legs_beyond_the_wanted_number_leave_one_by_one_under_a_host(core, four):
    uid = volumes.create(core, T, volume(replicas=3))
    published(core, uid)
    with core.db.write() as session:
        row = volumes.find(session, T, uid)
        row.num_replicas = 2
        settling.add(row, settling.REPLICAS)
    reconcile.run(core)
    (going,) = [key for key, one in states(core, uid).items() if one[0] == "Terminating"]
    replicas.confirm(core, T, uid, going)
    reconcile.run(core)
    assert len(places(core, uid)) == 2
    assert shown(core, uid).unsettled == ""


def test_the_storage_class_holds_for_added_legs(core):
    nodes = [add_node(core, rack=rack) for rack in ("a", "b", "b", "a")]
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    lost, good = degraded(core, uid)
    kept = node_of(core, places(core, uid)[good])
    new = replicas.add(core, T, uid, ADD)
    chosen = node_of(core, places(core, uid)[new])
    racks = dict(zip([one.persistent_id for one in nodes], ("a", "b", "b", "a"), strict=True))
    assert racks[chosen.persistent_id] != racks[kept.persistent_id]
    report(core, uid, new, "Synchronizing", "Available")
    replicas.terminate(core, T, uid, lost)
    replicas.confirm(core, T, uid, lost)
    with pytest.raises(errors.NoSpaceError):
        replicas.add(core, T, uid, ADD)
    assert replicas.add(core, T, uid, ReplicaAdd(same_rack_allowed=True))


def test_what_is_not_there_is_refused_in_order(core, attached):
    strange = str(uuid.uuid4())
    for call in (
        lambda: replicas.add(core, T, strange, ADD),
        lambda: replicas.add(core, T, "none", ADD),
        lambda: replicas.terminate(core, T, attached, strange),
        lambda: replicas.confirm(core, T, attached, "none"),
        lambda: replicas.report(core, T, attached, strange, "Missing"),
    ):
        with pytest.raises(errors.NotExistsError):
            call()
    leg = next(iter(places(core, attached)))
    with pytest.raises(errors.ConflictError, match="ask for its deletion first"):
        replicas.confirm(core, T, attached, leg)
    with pytest.raises(errors.InvalidInputError):
        replicas.report(core, T, attached, leg, "Terminating")
    plain = volumes.create(core, T, volume("plain"))
    with pytest.raises(errors.ConflictError, match="one replica"):
        replicas.add(core, T, plain, ADD)
    with pytest.raises(errors.VolumeNotPublishedError):
        report(core, plain, next(iter(places(core, plain))), "Missing")


# -- publish --------------------------------------------------------------------------------------


def test_a_terminating_leg_goes_with_the_host(core, attached):
    lost, _ = degraded(core, attached)
    new = replicas.add(core, T, attached, ADD)
    replicas.terminate(core, T, attached, lost)
    with pytest.raises(errors.ConflictError, match="takes no reports"):
        report(core, attached, lost, "Available")
    unpublish(core, attached)
    assert lost not in places(core, attached)
    assert lost not in core.nodes.objects()
    assert new in core.nodes.objects()


def test_a_host_is_told_what_the_array_is(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    first = published(core, uid, KNOWING)
    assert (first.array_state, first.shared) == ("new", False)
    assert [one.node_name for one in first.replicas] == [
        node_of(core, place).name for place in shown(core, uid).location
    ]
    legs = [LegReport(replica=key, state="Available", events=7) for key in places(core, uid)]
    strange = str(uuid.uuid4())
    told = [*legs, LegReport(replica=strange, state="Available")]
    ask = ArrayReport(host_id="host-1", vol_id=uid, state="open", legs=told)
    assert replicas.report_array(core, T, ask) == [strange]
    assert shown(core, uid).array_state == "open"
    assert {one.events for one in published(core, uid, KNOWING).replicas} == {7}
    clean = ask.model_copy(update={"state": "clean"})
    replicas.report_array(core, T, clean)
    unpublish(core, uid)
    assert shown(core, uid).array_state == "clean"
    # Whoever was given the volume may have the array.
    answer = published(core, uid, KNOWING)
    assert answer.array_state == "clean"
    assert {one.events for one in answer.replicas} == {7}
    assert shown(core, uid).array_state == "open"
    other = HostProbe(host_nqn="nqn.2014-08.org.x:other", host_id="host-2")
    assert published(core, uid, other).shared
    unpublish(core, uid)
    assert shown(core, uid).array_state == "open"
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid))
    assert shown(core, uid).array_state == "open"
    with pytest.raises(errors.VolumeNotPublishedError):
        replicas.report_array(core, T, ask)
    assert kinds(core).count("array.state") == 3


@pytest.mark.parametrize("host", [OLD, CHECKING, KNOWING])
def test_a_host_that_leaves_without_a_report_leaves_no_counters_as_proof(core, four, host):
    """It has none, or its agent died before it could tell of a lost leg."""
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid, KNOWING)
    legs = [LegReport(replica=key, state="Available", events=7) for key in places(core, uid)]
    ask = ArrayReport(host_id="host-1", vol_id=uid, state="clean", legs=legs)
    replicas.report_array(core, T, ask)
    unpublish(core, uid)
    other = host.model_copy(update={"host_id": "host-2", "host_nqn": "nqn.2014-08.org.x:other"})
    published(core, uid, other)
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-2"))
    answer = published(core, uid, KNOWING)
    assert answer.array_state == "clean"
    assert {one.events for one in answer.replicas} == {0}


def test_a_report_of_a_whole_array_is_believed_at_once(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid, KNOWING)
    lost, good = degraded(core, uid)
    new = replicas.add(core, T, uid, ADD)
    ask = ArrayReport(
        host_id="host-1",
        vol_id=uid,
        state="open",
        legs=[
            LegReport(replica=good, state="Available", events=20),
            LegReport(replica=new, state="Available", events=20),
            LegReport(replica=lost, state="Missing", events=4),
        ],
    )
    replicas.report_array(core, T, ask)
    assert states(core, uid)[new] == ("Available", "fresh")
    report(core, uid, lost, "Available")
    assert states(core, uid)[lost] == ("Available", "fresh")


def test_only_stale_legs_are_given_to_nobody_who_cannot_tell(core, attached):
    lost, good = degraded(core, attached)
    unpublish(core, attached)
    port = ports(core, node_of(core, places(core, attached)[good]))
    core.nodes.down.add(port)
    with pytest.raises(errors.StaleError, match=good):
        published(core, attached)
    core.nodes.down.clear()
    reconcile.run(core)
    assert core.nodes.exports() == set()
    core.nodes.down.add(port)
    answer = published(core, attached, KNOWING)
    assert {one.uuid: one.freshness for one in answer.replicas} == {lost: "stale", good: "fresh"}


def test_a_host_that_needs_every_leg_gets_all_or_nothing(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    away, _ = places(core, uid)
    whole = PublishRequest(host_id=OLD.host_id, vol_id=uid, host=OLD, complete=True)
    core.nodes.down.add(ports(core, node_of(core, places(core, uid)[away])))
    before = states(core, uid)
    with pytest.raises(errors.StaleError, match=away):
        publish.publish(core, T, whole)
    assert states(core, uid) == before
    core.nodes.down.clear()
    reconcile.run(core)
    assert core.nodes.exports() == set()
    assert len(publish.publish(core, T, whole).replicas) == 2
    report(core, uid, away, "Missing")
    with pytest.raises(errors.StaleError, match=r"is Missing \(stale\)"):
        publish.publish(core, T, whole)
    assert len(core.nodes.exports()) == 2


def test_a_host_that_checks_freshness_may_refuse_so_nothing_is_assumed(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    away, _ = places(core, uid)
    core.nodes.down.add(ports(core, node_of(core, places(core, uid)[away])))
    answer = published(core, uid, CHECKING)
    assert {one.freshness for one in answer.replicas} == {"fresh"}
    assert states(core, uid)[away][1] == "fresh"


def test_a_leg_that_an_old_host_was_not_given_is_lost(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    away, _ = places(core, uid)
    core.nodes.down.add(ports(core, node_of(core, places(core, uid)[away])))
    published(core, uid)
    assert states(core, uid)[away] == ("Missing", "stale")
    core.nodes.down.clear()
    report(core, uid, away, "Available")
    assert states(core, uid)[away] == ("Synchronizing", "stale")
    report(core, uid, away, "Available")
    assert states(core, uid)[away] == ("Available", "fresh")


def test_a_reconcile_does_not_take_back_what_a_host_reported(core, attached):
    lost, good = degraded(core, attached)
    before = places(core, attached)[lost].current_state_time
    reconcile.run(core)
    assert states(core, attached)[lost] == ("Missing", "stale")
    assert places(core, attached)[lost].current_state_time >= before
    held = node_of(core, places(core, attached)[good]).state.replicas
    kept = held.pop(good)
    assert reconcile.run(core).missing == 1
    assert states(core, attached)[good] == ("Missing", "fresh")
    held[good] = kept
    reconcile.run(core)
    assert states(core, attached)[good] == ("Missing", "fresh")
    report(core, attached, good, "Available")
    assert states(core, attached)[good] == ("Available", "fresh")


def test_a_leg_that_was_away_while_nobody_wrote_is_good(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    away, _ = places(core, uid)
    held = node_of(core, places(core, uid)[away]).state.replicas
    kept = held.pop(away)
    reconcile.run(core)
    assert states(core, uid)[away] == ("Missing", "fresh")
    held[away] = kept
    reconcile.run(core)
    assert states(core, uid)[away] == ("Available", "fresh")


# -- hosts ----------------------------------------------------------------------------------------


def test_hosts_announce_abilities_and_have_volumes(core, attached):
    hosts.probe(core, KNOWING)
    (one,) = hosts.list_all(core)
    assert (one.volumes, one.abilities) == (1, [ABILITY_ARRAY_REPORT, ABILITY_FRESHNESS])
    # A driver of the old kind probes for the host and knows of no abilities.
    hosts.probe(core, HostProbe(host_nqn=NQN, host_id="host-1", client_type="Agent"))
    assert len(hosts.list_all(core, "")[0].abilities) == 2
    published(core, attached, HostProbe(host_nqn=NQN, host_id="host-1", abilities=["hold-writes"]))
    assert len(hosts.list_all(core)[0].abilities) == 3
    with core.db.write() as session:
        session.get_one(models.Host, "host-1").abilities_since = now_ms() - 91_000
    assert hosts.list_all(core)[0].abilities == []


def test_a_conflict_of_hosts_is_told_once(core, attached):
    twin = HostProbe(host_nqn="nqn.2014-08.org.x:twin", host_id="host-1")
    for call in (lambda: hosts.probe(core, twin), lambda: published(core, attached, twin)):
        with pytest.raises(errors.ConflictError):
            call()
    assert kinds(core).count("host.conflict") == 1
    assert len(targets.list_all(core, "host-1", None)) == 2
