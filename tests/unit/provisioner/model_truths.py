# SPDX-License-Identifier: Apache-2.0
"""What is always true of the provisioner, and what is in the end; for the model of it."""

from hypothesis.stateful import invariant
from sqlalchemy import func, select

from kumo_client.schemas.volume import (
    MAX_LEGS,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
    StorageClass,
)
from kumo_provisioner.db import models
from kumo_provisioner.services import capacity, snapshots, volumes
from tests.unit.provisioner import stories

T = stories.T
THERE, GONE, UNSURE = "there", "gone", "unsure"


class Truths:
    """Of a machine that has ``core`` and ``plant``, and what it was told: ``volumes``,
    ``snapshots`` and ``published``."""

    @invariant()
    def nothing_is_sold_twice(self):
        with self.core.db.read() as session:
            sums = charged(session)
            for pool in session.scalars(select(models.Pool)):
                counted = sums.get((pool.backend_id, pool.name), (0, 0, 0))
                assert (pool.charged_bytes, pool.sold_iops, pool.sold_bw) == counted
                assert pool.charged_bytes <= pool.total_bytes
                assert pool.sold_iops <= pool.measured_iops
                assert pool.sold_bw <= pool.measured_bw

    @invariant()
    def no_node_has_two_replicas_of_a_volume(self):
        with self.core.db.read() as session:
            query = select(models.Replica.volume_id, models.Replica.backend_id)
            rows = session.execute(query).all()
        assert len(rows) == len(set(rows))

    @invariant()
    def at_most_four_legs_and_one_terminating(self):
        with self.core.db.read() as session:
            rows = session.execute(select(models.Replica.volume_id, models.Replica.state)).all()
        for uid in {volume_id for volume_id, _ in rows}:
            states = [state for volume_id, state in rows if volume_id == uid]
            assert len(states) <= MAX_LEGS
            assert states.count(REPLICA_TERMINATING) <= 1

    @invariant()
    def a_crash_does_not_look_like_an_old_copy(self):
        assert not self.core.stamps.load().doubt

    def told_is_true(self):
        shown = {one.uuid: one for one in volumes.list_all(self.core, T)}
        for uid, told in self.volumes.items():
            assert told == UNSURE or (told == THERE) == (uid in shown), (uid, told)
        listed = {one.snapshot_id for one in snapshots.list_all(self.core, T)}
        for uid, told in self.snapshots.items():
            assert told == UNSURE or (told == THERE) == (uid in listed), (uid, told)
        for (uid, host_id), told in self.published.items():
            now = uid in shown and host_id in shown[uid].published_hosts
            assert told == UNSURE or (told == THERE) == now, (uid, host_id, told)

    def nodes_hold_the_record(self):
        with self.core.db.read() as session:
            query = select(models.Replica)
            rows = {row.uuid: row for row in session.scalars(query)}
            parts = set(session.scalars(select(models.SnapshotPart.uuid)))
            wanted = {
                (replica.uuid, one.host.nqn)
                for replica in rows.values()
                for one in replica.volume.publications
            }
            unfinished = session.scalars(
                select(models.Volume.uuid).where(models.Volume.status != models.AVAILABLE)
            ).all()
        assert unfinished == []
        # A leg that is given up before it was made stays in the record until its host confirms.
        unmade = {
            uid
            for uid, row in rows.items()
            if row.state == REPLICA_TERMINATING and row.freshness == models.BLANK
        } - self.plant.nodes.objects()
        assert self.plant.nodes.objects() == set(rows) - unmade | parts
        assert self.plant.nodes.exports() == {one for one in wanted if one[0] not in unmade}
        for model in self.plant.nodes.models.values():
            for uid, held in model.state.replicas.items():
                assert rows[uid].backend_id == model.persistent_id
                assert rows[uid].bytes == held.bytes
                assert rows[uid].pool == held.pool


def unsettled():
    return select(models.Volume).where(models.Volume.unsettled != "")


def legs_to_go():
    return select(models.Replica).filter_by(state=REPLICA_TERMINATING)


def lacks(volume):
    """How many legs are still to be added; negative: to go."""
    here = [leg for leg in volume.replicas if leg.state != REPLICA_TERMINATING]
    replaced = {leg.replaces for leg in here} & {leg.uuid for leg in here}
    return volume.num_replicas - (len(here) - len(replaced))


def waits_for_its_host(volume):
    """Whether legs are to be added or to go, and only a host can make that possible."""
    legs = volume.replicas
    confirms = bool(volume.publications) and any(leg.state == REPLICA_TERMINATING for leg in legs)
    # One that is not filled yet. Where none is in sync, none can be filled, and none may go.
    spare = any(
        leg.freshness == models.BLANK or leg.state in (REPLICA_SYNCHRONIZING, REPLICA_UNKNOWN)
        for leg in legs
        if leg.state != REPLICA_TERMINATING
    )
    nothing_to_fill_from = not any(leg.in_sync for leg in legs)
    if lacks(volume) > 0:
        return spare or nothing_to_fill_from
    return lacks(volume) < 0 and (confirms or nothing_to_fill_from)


def waits_for_room(session, volume):
    """Whether a leg is to be added, and no node that has none could take it."""
    size = max(leg.reserved_bytes for leg in volume.replicas)
    asked = StorageClass.model_validate(volume.storage_class)
    iops, bw = capacity.guarantee(asked, volume.wanted_capacity)
    lost = [leg for leg in volume.replicas if leg.state == REPLICA_MISSING]
    old = min(lost, key=lambda leg: leg.state_since, default=None)
    racks = {leg.backend.rack for leg in volume.replicas if leg is not old}
    return lacks(volume) > 0 and not any(
        pool.total_bytes - pool.charged_bytes >= size
        and pool.measured_iops - pool.sold_iops >= iops
        and pool.measured_bw - pool.sold_bw >= bw
        for pool in session.scalars(select(models.Pool))
        if pool.backend_id not in {leg.backend_id for leg in volume.replicas}
        and (asked.same_rack_allowed or pool.backend.rack not in racks)
    )


def charged(session):
    """Bytes, operations/s and KB/s by (backend, pool), added up from the rows."""
    total = {}
    for table in (models.Replica, models.SnapshotPart, models.Removal):
        columns = (table.backend_id, table.pool)
        sums = [func.sum(table.reserved_bytes)]
        if table is models.Replica:
            # Other rows are charged with bytes alone.
            sums += [func.sum(table.sold_iops), func.sum(table.sold_bw)]
        query = select(*columns, *sums).group_by(*columns)
        if table is models.Removal:
            query = query.where(models.Removal.done.is_(None))
        for backend_id, pool, *sizes in session.execute(query):
            before = total.get((backend_id, pool), (0, 0, 0))
            sizes += [0] * (3 - len(sizes))
            more = (int(size or 0) for size in sizes)
            total[backend_id, pool] = tuple(map(sum, zip(before, more, strict=True)))
    return total
