# SPDX-License-Identifier: Apache-2.0
"""First schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


# In the order of their foreign keys.
TABLES = (
    "backends",
    "hosts",
    "removals",
    "volumes",
    "publications",
    "replicas",
    "snapshots",
    "snapshot_parts",
)


def upgrade() -> None:
    _backends()
    _hosts()
    _removals()
    _volumes()
    _publications()
    _replicas()
    _snapshots()
    _snapshot_parts()


def _backends() -> None:
    op.create_table(
        "backends",
        sa.Column("persistent_id", sa.String(length=255), nullable=False),
        sa.Column("mgmt_ips", sa.JSON(), nullable=False),
        sa.Column("mgmt_port", sa.Integer(), nullable=False),
        sa.Column("rack", sa.String(length=255), nullable=False),
        sa.Column("zone", sa.String(length=255), nullable=False),
        sa.Column("region", sa.String(length=255), nullable=False),
        sa.Column("host_id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("portals", sa.JSON(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("failed_probes", sa.Integer(), nullable=False),
        sa.Column("last_probe", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("persistent_id"),
    )


def _hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("uuid", sa.String(length=255), nullable=False),
        sa.Column("nqn", sa.String(length=223), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("client_type", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("duration", sa.Integer(), nullable=False),
        sa.Column("last_probe", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("nqn"),
    )


def _removals() -> None:
    op.create_table(
        "removals",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("backend_id", sa.String(length=255), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("uuid"),
    )
    with op.batch_alter_table("removals", schema=None) as batch_op:
        batch_op.create_index("ix_removals_backend_done", ["backend_id", "done"], unique=False)


def _volumes() -> None:
    op.create_table(
        "volumes",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("wanted_capacity", sa.Integer(), nullable=False),
        sa.Column("num_replicas", sa.Integer(), nullable=False),
        sa.Column("provisioning_type", sa.String(length=8), nullable=False),
        sa.Column("reserved_space_percentage", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(length=16), nullable=False),
        sa.Column("writable", sa.Boolean(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("source_volume_id", sa.String(length=36), nullable=False),
        sa.Column("storage_class", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("tenant_id", "alias"),
    )
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_volumes_status"), ["status"], unique=False)


def _publications() -> None:
    op.create_table(
        "publications",
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["hosts.uuid"],
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volumes.uuid"],
        ),
        sa.PrimaryKeyConstraint("volume_id", "host_id"),
    )
    with op.batch_alter_table("publications", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_publications_host_id"), ["host_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_publications_status"), ["status"], unique=False)


def _replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("backend_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_since", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backend_id"],
            ["backends.persistent_id"],
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volumes.uuid"],
        ),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("volume_id", "backend_id"),
    )
    with op.batch_alter_table("replicas", schema=None) as batch_op:
        batch_op.create_index(
            "ix_replicas_backend_reserved", ["backend_id", "reserved_bytes"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_replicas_volume_id"), ["volume_id"], unique=False)


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("reserved_space_percentage", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volumes.uuid"],
        ),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("tenant_id", "alias"),
    )
    with op.batch_alter_table("snapshots", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_snapshots_status"), ["status"], unique=False)
        batch_op.create_index(batch_op.f("ix_snapshots_volume_id"), ["volume_id"], unique=False)


def _snapshot_parts() -> None:
    op.create_table(
        "snapshot_parts",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("replica_id", sa.String(length=36), nullable=False),
        sa.Column("backend_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backend_id"],
            ["backends.persistent_id"],
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["snapshots.uuid"],
        ),
        sa.PrimaryKeyConstraint("uuid"),
    )
    with op.batch_alter_table("snapshot_parts", schema=None) as batch_op:
        batch_op.create_index(
            "ix_parts_backend_reserved", ["backend_id", "reserved_bytes"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_snapshot_parts_snapshot_id"), ["snapshot_id"], unique=False
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
