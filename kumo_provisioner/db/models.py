# SPDX-License-Identifier: Apache-2.0
"""The provisioner's record: what should be.

A row is written before any node is asked. ``creating`` and ``publishing`` rows are intents: what
is found in that state by a reconcile, with no operation at work on it, is undone. Deleting a
volume or snapshot moves its parts to ``removals`` in one transaction, so the volume is gone at
once for users, while the parts keep their space until the node has confirmed. A finished removal
stays as the proof that an object of that uuid, should a late answer make it reappear, is ours.

Times are milliseconds since the epoch, sizes are GiB in ``capacity`` columns and bytes elsewhere.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from kumo_client.schemas.volume import REPLICA_AVAILABLE

CREATING = "creating"
AVAILABLE = "available"
# A volume of which the data is not ours yet, or no more: nothing of it is ever deleted.
ADOPTING = "adopting"
RELEASING = "releasing"
PUBLISHING = "publishing"
PUBLISHED = "published"

REPLICA = "replica"
SNAPSHOT = "snapshot"

THICK = "THICK"
THIN = "THIN"

# Modes that an operator gives a backend; the empty text is none.
DRAINING = "Draining"
MAINTENANCE = "Maintenance"

# What is known of the writes that a leg has seen.
FRESH = "fresh"
STALE = "stale"
BLANK = "blank"

# What a host is told of the array on a replicated volume.
ARRAY_NEW = "new"
ARRAY_CLEAN = "clean"
ARRAY_OPEN = "open"


# SQLite numbers rows by itself only when the key is exactly INTEGER.
Sequence = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class Backend(Base):
    """A storage node and what its last successful probe told.

    ``mode`` and ``cordoned`` are what an operator wants of it, ``state`` is what the probes say.
    ``max_iops`` and ``max_bw`` (KB/s) are what the node as a whole is declared to deliver; 0 means
    the sum of its pools. ``sold_iops`` and ``sold_bw`` are what its pools were promised together,
    and ``generation`` rises with everything that is sold on the node: like the counters of pools,
    they are written by :mod:`kumo_provisioner.services.capacity` alone. ``seen_generation`` is that
    of the node's record as the node last told it.
    ``node_generation`` is that of the node's record when it was last compared with ours, and
    ``next_reconcile`` (ms) when it is to be compared again.
    """

    __tablename__ = "backends"
    persistent_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    mgmt_ips: Mapped[list[Any]]
    mgmt_port: Mapped[int]
    rack: Mapped[str] = mapped_column(String(255), default="")
    zone: Mapped[str] = mapped_column(String(255), default="")
    region: Mapped[str] = mapped_column(String(255), default="")
    host_id: Mapped[str] = mapped_column(String(255), default="")
    name: Mapped[str] = mapped_column(String(255), default="")
    version: Mapped[str] = mapped_column(String(64), default="")
    boot_id: Mapped[str] = mapped_column(String(64), default="")
    portals: Mapped[list[Any]]
    total_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    used_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(32))
    failed_probes: Mapped[int] = mapped_column(default=0)
    last_probe: Mapped[int] = mapped_column(BigInteger, default=0)
    mode: Mapped[str] = mapped_column(String(16), default="")
    cordoned: Mapped[bool] = mapped_column(default=False)
    max_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    max_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    seen_generation: Mapped[int] = mapped_column(BigInteger, default=-1)
    last_heartbeat: Mapped[int] = mapped_column(BigInteger, default=0)
    node_generation: Mapped[int] = mapped_column(BigInteger, default=-1)
    next_reconcile: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    problems: Mapped[list[Any]] = mapped_column(default=list)
    abilities: Mapped[list[Any]] = mapped_column(default=list)
    pools: Mapped[list[Pool]] = relationship(
        back_populates="backend", cascade="all, delete-orphan", order_by="Pool.name"
    )


class Pool(Base):
    """A pool of a storage node: one SSD, or several when ``spans``.

    ``charged_bytes``, ``sold_iops`` and ``sold_bw`` are what replicas, parts of snapshots and
    removals on it are charged with, ``replicas`` is how many it has: kept, not added up each time,
    because placement looks at all pools. Only :mod:`kumo_provisioner.services.capacity` writes
    them. ``declared_*`` were given by an operator and win over ``measured_*``, which the node
    reports; 0 means not known, and then nothing can be guaranteed. ``iops`` and ``bw`` are the use
    of the last minutes.
    """

    __tablename__ = "pools"
    backend_id: Mapped[str] = mapped_column(ForeignKey("backends.persistent_id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="ok")
    spans: Mapped[bool] = mapped_column(default=False)
    total_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    used_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    metadata_percent: Mapped[float] = mapped_column(Float, default=0.0)
    charged_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    replicas: Mapped[int] = mapped_column(BigInteger, default=0)
    declared_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    declared_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    measured_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    measured_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    iops: Mapped[int] = mapped_column(BigInteger, default=0)
    bw: Mapped[int] = mapped_column(BigInteger, default=0)
    used_at: Mapped[int] = mapped_column(BigInteger, default=0)
    ssds: Mapped[list[Any]] = mapped_column(default=list)
    backend: Mapped[Backend] = relationship(back_populates="pools")

    @property
    def max_iops(self) -> int:
        return self.declared_iops or self.measured_iops

    @property
    def max_bw(self) -> int:
        return self.declared_bw or self.measured_bw


class Volume(Base):
    """A volume. ``wanted_capacity`` is larger than ``capacity`` while an extension is under way.

    ``array_state`` is ``new`` until a host has confirmed that the array of a replicated volume
    exists, ``open`` while a host has it or had it when last heard of, ``clean`` after a detach in
    order. ``unsettled`` names what a reconcile has to finish on it (``extend``, ``limits``,
    ``revert``, ...), empty for nothing; ``wish`` has, by kind, what is needed for that.
    ``generation`` rises with every change. ``last_host`` has left as the last one, was named in the
    unpublish, and may tell how it stopped its array, with ``last_publication``, the ``since`` of
    its publication, and counters not below ``last_events``; it is empty when nobody may.
    """

    __tablename__ = "volumes"
    __table_args__ = (
        UniqueConstraint("tenant_id", "alias"),
        Index("ix_volumes_tenant_uuid", "tenant_id", "uuid"),
    )
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(255), default="0")
    alias: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[int] = mapped_column(BigInteger)
    capacity: Mapped[int]
    wanted_capacity: Mapped[int]
    num_replicas: Mapped[int]
    provisioning_type: Mapped[str] = mapped_column(String(8), default=THICK)
    reserved_space_percentage: Mapped[int] = mapped_column(default=0)
    protocol: Mapped[str] = mapped_column(String(16), default="NVMeoF")
    writable: Mapped[bool] = mapped_column(default=True)
    snapshot_id: Mapped[str] = mapped_column(String(36), default="")
    source_volume_id: Mapped[str] = mapped_column(String(36), default="")
    # The storage class as it was asked for, in the names of the wire.
    storage_class: Mapped[dict[str, Any]]
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    array_state: Mapped[str] = mapped_column(String(8), default=ARRAY_NEW)
    unsettled: Mapped[str] = mapped_column(String(32), default="", index=True)
    wish: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_host: Mapped[str] = mapped_column(String(255), default="")
    last_publication: Mapped[int] = mapped_column(BigInteger, default=0)
    last_events: Mapped[int] = mapped_column(BigInteger, default=0)
    replicas: Mapped[list[Replica]] = relationship(
        back_populates="volume", cascade="all, delete-orphan", order_by="Replica.position"
    )
    publications: Mapped[list[Publication]] = relationship(
        back_populates="volume", cascade="all, delete-orphan"
    )

    @property
    def replicated(self) -> bool:
        return self.num_replicas > 1


class Replica(Base):
    """A replica. ``reserved_bytes``, ``sold_iops`` and ``sold_bw`` (KB/s) are what it is charged
    with on its pool.

    ``freshness``: ``fresh`` has all writes; ``stale`` missed some; ``blank`` was added later and
    has never been in sync. ``events`` is the md event counter that a host last reported for it.
    ``replaces`` is the replica that goes when this one is in sync. ``absent``: its node does not
    have it, or its disk has failed.
    """

    __tablename__ = "replicas"
    __table_args__ = (
        UniqueConstraint("volume_id", "backend_id"),
        Index("ix_replicas_backend_reserved", "backend_id", "reserved_bytes"),
        Index("ix_replicas_state_freshness", "state", "freshness"),
    )
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), index=True)
    backend_id: Mapped[str] = mapped_column(ForeignKey("backends.persistent_id"))
    position: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    reserved_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    state_since: Mapped[int] = mapped_column(BigInteger)
    pool: Mapped[str] = mapped_column(String(128), default="")
    sold_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    freshness: Mapped[str] = mapped_column(String(8), default=FRESH)
    events: Mapped[int] = mapped_column(BigInteger, default=0)
    replaces: Mapped[str] = mapped_column(String(36), default="")
    absent: Mapped[bool] = mapped_column(default=False)
    volume: Mapped[Volume] = relationship(back_populates="replicas")
    backend: Mapped[Backend] = relationship()

    @property
    def in_sync(self) -> bool:
        """Whether it has all writes, as far as is known: the only kind of leg that is a source."""
        return self.state == REPLICA_AVAILABLE and self.freshness == FRESH


class Snapshot(Base):
    """A snapshot of a volume: one part on the node of each leg that was in sync.

    ``coherent``: the parts were taken while nobody wrote, so they are alike. Otherwise only the
    part of ``source_replica`` is a source of data.
    """

    __tablename__ = "snapshots"
    __table_args__ = (
        UniqueConstraint("tenant_id", "alias"),
        Index("ix_snapshots_tenant_uuid", "tenant_id", "uuid"),
    )
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(255), default="0")
    alias: Mapped[str] = mapped_column(String(255))
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[int] = mapped_column(BigInteger)
    capacity: Mapped[int]
    reserved_space_percentage: Mapped[int] = mapped_column(default=0)
    coherent: Mapped[bool] = mapped_column(default=True)
    source_replica: Mapped[str] = mapped_column(String(36), default="")
    array_state: Mapped[str] = mapped_column(String(8), default=ARRAY_NEW)
    volume: Mapped[Volume] = relationship()
    parts: Mapped[list[SnapshotPart]] = relationship(
        back_populates="snapshot", cascade="all, delete-orphan", order_by="SnapshotPart.position"
    )


class SnapshotPart(Base):
    """The part of a snapshot that one node holds."""

    __tablename__ = "snapshot_parts"
    __table_args__ = (Index("ix_parts_backend_reserved", "backend_id", "reserved_bytes"),)
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    snapshot_id: Mapped[str] = mapped_column(ForeignKey("snapshots.uuid"), index=True)
    replica_id: Mapped[str] = mapped_column(String(36))
    backend_id: Mapped[str] = mapped_column(ForeignKey("backends.persistent_id"))
    position: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    reserved_bytes: Mapped[int] = mapped_column(BigInteger)
    pool: Mapped[str] = mapped_column(String(128), default="")
    snapshot: Mapped[Snapshot] = relationship(back_populates="parts")
    backend: Mapped[Backend] = relationship()


class Host(Base):
    """A host that attaches volumes, known by its own id and its NQN."""

    __tablename__ = "hosts"
    uuid: Mapped[str] = mapped_column(String(255), primary_key=True)
    nqn: Mapped[str] = mapped_column(String(223), unique=True)
    name: Mapped[str] = mapped_column(String(255), default="")
    client_type: Mapped[str] = mapped_column(String(255), default="")
    version: Mapped[str] = mapped_column(String(255), default="")
    duration: Mapped[int] = mapped_column(default=30)
    last_probe: Mapped[int] = mapped_column(BigInteger, default=0)
    multipath: Mapped[bool] = mapped_column(default=False)
    # Abilities that the host announced, see kumo_client.schemas.host, and when it did last (ms).
    abilities: Mapped[list[Any]] = mapped_column(default=list)
    abilities_since: Mapped[int] = mapped_column(BigInteger, default=0)


class Publication(Base):
    """A volume that a host may reach. Which exports that means follows from the replicas.

    ``since`` (ms since the epoch) is another one for each publication of a volume.
    """

    __tablename__ = "publications"
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.uuid"), primary_key=True, index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    since: Mapped[int] = mapped_column(BigInteger, default=0)
    volume: Mapped[Volume] = relationship(back_populates="publications")
    host: Mapped[Host] = relationship()


class Removal(Base):
    """An object that has to go from a node, or (``done`` set) has gone.

    The backend is no foreign key: what a removed backend still holds is cleaned up if it returns.
    """

    __tablename__ = "removals"
    __table_args__ = (Index("ix_removals_backend_done", "backend_id", "done"),)
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    backend_id: Mapped[str] = mapped_column(String(255))
    reserved_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    since: Mapped[int] = mapped_column(BigInteger)
    done: Mapped[int | None] = mapped_column(BigInteger, nullable=True)
    pool: Mapped[str] = mapped_column(String(128), default="")
    sold_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    sold_bw: Mapped[int] = mapped_column(BigInteger, default=0)


class Garbage(Base):
    """An object that a node shows as its own and that no record here knows.

    ``acknowledged``: an operator decided that it stays.
    """

    __tablename__ = "garbage"
    backend_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    first_seen: Mapped[int] = mapped_column(BigInteger)
    last_seen: Mapped[int] = mapped_column(BigInteger)
    acknowledged: Mapped[bool] = mapped_column(default=False)


class Tenant(Base):
    """Who volumes belong to. Budgets of 0 have no limit; the default tenant has none.

    The ``used_*`` columns are kept like those of pools, and for the same reason: capacity in GiB
    times replicas, guaranteed operations per second and KB/s.
    """

    __tablename__ = "tenants"
    uuid: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    capacity: Mapped[int] = mapped_column(BigInteger, default=0)
    total_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    used_capacity: Mapped[int] = mapped_column(BigInteger, default=0)
    used_iops: Mapped[int] = mapped_column(BigInteger, default=0)
    used_bw: Mapped[int] = mapped_column(BigInteger, default=0)
    generation: Mapped[int] = mapped_column(BigInteger, default=0)


class Task(Base):
    """Long work. ``host_id`` names the host whose agent does it; empty: the provisioner does.

    ``configuration`` is the list of {name, value} of the wire. ``parent`` is the task that this
    one is a part of.
    """

    __tablename__ = "tasks"
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), index=True)
    host_id: Mapped[str] = mapped_column(String(255), default="", index=True)
    tenant_id: Mapped[str] = mapped_column(String(255), default="0")
    volume_id: Mapped[str] = mapped_column(String(36), default="", index=True)
    replica_id: Mapped[str] = mapped_column(String(36), default="")
    new_replica_id: Mapped[str] = mapped_column(String(36), default="")
    backend_id: Mapped[str] = mapped_column(String(255), default="", index=True)
    parent: Mapped[str] = mapped_column(String(36), default="", index=True)
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    task_status: Mapped[str] = mapped_column(String(64), default="")
    status_description: Mapped[str] = mapped_column(Text, default="")
    configuration: Mapped[list[Any]] = mapped_column(default=list)
    created: Mapped[int] = mapped_column(BigInteger)
    updated: Mapped[int] = mapped_column(BigInteger)


class Event(Base):
    """Something that happened. ``seq`` is given after the commit, in the order of commits, so that
    a reader that has seen a number has seen all smaller ones; 0 until then."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    seq: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    time: Mapped[int] = mapped_column(BigInteger, index=True)
    type: Mapped[str] = mapped_column(String(48))
    level: Mapped[str] = mapped_column(String(8), default="INFO")
    tenant_id: Mapped[str] = mapped_column(String(255), default="0")
    volume_id: Mapped[str] = mapped_column(String(36), default="", index=True)
    replica_id: Mapped[str] = mapped_column(String(36), default="")
    backend_id: Mapped[str] = mapped_column(String(255), default="")
    host_id: Mapped[str] = mapped_column(String(255), default="")
    message: Mapped[str] = mapped_column(Text, default="")
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Counter(Base):
    """A number that only rises, such as the last sequence number of an event."""

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger, default=0)


class Identity(Base):
    """The one row that tells this database from others, and from older copies of itself.

    ``uuid``, ``branch`` and ``number`` are its stamp (:mod:`kumo_client.stamp`), ``past`` lists the
    branches that it comes from, the last one first, as [branch, number]. ``made`` (ms) is when it
    got its first stamp. ``doubt`` is why nothing may be taken away from nodes (a constant of
    :mod:`kumo_provisioner.stamps`), empty when all is well; ``since`` (ms) is when that was
    noticed and ``reason`` is a sentence for people. ``away`` are ids of nodes that did not answer
    when an operator accepted the database.
    """

    __tablename__ = "identity"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    uuid: Mapped[str] = mapped_column(String(36))
    branch: Mapped[str] = mapped_column(String(36))
    number: Mapped[int] = mapped_column(BigInteger, default=0)
    made: Mapped[int] = mapped_column(BigInteger)
    past: Mapped[list[Any]] = mapped_column(default=list)
    away: Mapped[list[Any]] = mapped_column(default=list)
    doubt: Mapped[str] = mapped_column(String(16), default="")
    since: Mapped[int] = mapped_column(BigInteger, default=0)
    reason: Mapped[str] = mapped_column(Text, default="")


class Instance(Base):
    """A running provisioner. It raises ``heartbeat`` (about ms since the epoch) all the time, and
    counts as dead when others see no change of it; nobody compares it with a clock."""

    __tablename__ = "instances"
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), default="")
    started: Mapped[int] = mapped_column(BigInteger)
    heartbeat: Mapped[int] = mapped_column(BigInteger)


class Lease(Base):
    """The right of one instance to work on something: a volume, a node, a background duty.

    It goes with the instance; one that was declared dead cannot take any.
    """

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    instance_id: Mapped[str] = mapped_column(
        ForeignKey("instances.uuid", ondelete="CASCADE"), index=True
    )
    token: Mapped[str] = mapped_column(String(36))
    taken: Mapped[int] = mapped_column(BigInteger)


class RevokedToken(Base):
    """A token that counts no more although it has not expired; forgotten after ``expires`` (s)."""

    __tablename__ = "revoked_tokens"
    jti: Mapped[str] = mapped_column(String(36), primary_key=True)
    expires: Mapped[int] = mapped_column(BigInteger, index=True)
