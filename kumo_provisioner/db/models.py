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

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

CREATING = "creating"
AVAILABLE = "available"
PUBLISHING = "publishing"
PUBLISHED = "published"

REPLICA = "replica"
SNAPSHOT = "snapshot"

THICK = "THICK"
THIN = "THIN"


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class Backend(Base):
    """A storage node and what its last successful probe told."""

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


class Volume(Base):
    """A volume. ``wanted_capacity`` is larger than ``capacity`` while an extension is under way."""

    __tablename__ = "volumes"
    __table_args__ = (UniqueConstraint("tenant_id", "alias"),)
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
    """A replica. ``reserved_bytes`` is what it is charged with on its node."""

    __tablename__ = "replicas"
    __table_args__ = (
        UniqueConstraint("volume_id", "backend_id"),
        Index("ix_replicas_backend_reserved", "backend_id", "reserved_bytes"),
    )
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), index=True)
    backend_id: Mapped[str] = mapped_column(ForeignKey("backends.persistent_id"))
    position: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    reserved_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    state_since: Mapped[int] = mapped_column(BigInteger)
    volume: Mapped[Volume] = relationship(back_populates="replicas")
    backend: Mapped[Backend] = relationship()


class Snapshot(Base):
    """A snapshot of a volume: one part on the node of each replica."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("tenant_id", "alias"),)
    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(255), default="0")
    alias: Mapped[str] = mapped_column(String(255))
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[int] = mapped_column(BigInteger)
    capacity: Mapped[int]
    reserved_space_percentage: Mapped[int] = mapped_column(default=0)
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


class Publication(Base):
    """A volume that a host may reach. Which exports that means follows from the replicas."""

    __tablename__ = "publications"
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.uuid"), primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.uuid"), primary_key=True, index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
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
