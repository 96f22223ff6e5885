# SPDX-License-Identifier: Apache-2.0
"""Pools, tenants, tasks, events, instances and leases

Before this, a node had one pool, named ``pool``, and what was charged to it was added up from the
rows each time.
"""

import time
import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

POOL = "pool"
UUID = sa.String(length=36)
NAME = sa.String(length=255)
BIG = sa.BigInteger()


def _text(name: str, kind: sa.String, default: str = "") -> sa.Column:
    return sa.Column(name, kind, nullable=False, server_default=default)


def _number(name: str, default: int = 0) -> sa.Column:
    return sa.Column(name, BIG, nullable=False, server_default=str(default))


def _flag(name: str, *, default: bool) -> sa.Column:
    value = sa.true() if default else sa.false()
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=value)


def _added() -> dict[str, tuple[sa.Column, ...]]:
    return {
        "backends": (
            _text("mode", sa.String(length=16)),
            _flag("cordoned", default=False),
            _number("max_iops"),
            _number("max_bw"),
            _number("sold_iops"),
            _number("sold_bw"),
            _number("generation"),
            _number("seen_generation", -1),
            _number("last_heartbeat"),
            _number("node_generation", -1),
            _number("next_reconcile"),
        ),
        "volumes": (
            _number("generation"),
            _text("array_state", sa.String(length=8), "new"),
            _text("unsettled", sa.String(length=32)),
            _text("last_host", NAME),
            _number("last_publication"),
            _number("last_events"),
        ),
        "replicas": (
            _text("pool", sa.String(length=128), POOL),
            _number("sold_iops"),
            _number("sold_bw"),
            _text("freshness", sa.String(length=8), "fresh"),
            _number("events"),
            _text("replaces", UUID),
            _flag("absent", default=False),
        ),
        "snapshots": (
            _flag("coherent", default=True),
            _text("source_replica", UUID),
            _text("array_state", sa.String(length=8), "new"),
        ),
        "snapshot_parts": (_text("pool", sa.String(length=128), POOL),),
        "hosts": (_flag("multipath", default=False), _number("abilities_since")),
        "publications": (_number("since"),),
        "removals": (
            _text("pool", sa.String(length=128), POOL),
            _number("sold_iops"),
            _number("sold_bw"),
        ),
    }


# MariaDB before 10.2 and MySQL give JSON columns no default, so these are filled by hand.
ADDED_JSON: tuple[tuple[str, str, list[str] | dict[str, str]], ...] = (
    ("backends", "problems", []),
    ("backends", "abilities", []),
    ("hosts", "abilities", []),
    ("volumes", "wish", {}),
)
NUMBERS = (
    "sold_iops",
    "sold_bw",
    "declared_iops",
    "declared_bw",
    "measured_iops",
    "measured_bw",
    "iops",
    "bw",
    "used_at",
)
POOLS = sa.table(
    "pools",
    sa.column("backend_id"),
    sa.column("name"),
    sa.column("state"),
    sa.column("spans", sa.Boolean()),
    sa.column("total_bytes"),
    sa.column("used_bytes"),
    sa.column("metadata_percent"),
    sa.column("charged_bytes"),
    sa.column("replicas"),
    sa.column("ssds", sa.JSON()),
    *(sa.column(name) for name in NUMBERS),
)
INDEXES = (("backends", "next_reconcile"), ("volumes", "unsettled"))


def upgrade() -> None:
    _add_columns()
    _pools()
    _tenants()
    _tasks()
    _events()
    _identity()
    _instances()
    _others()
    _fill()


def _add_columns() -> None:
    for table, columns in _added().items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.add_column(column)
    for table, name, empty in ADDED_JSON:
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column(name, sa.JSON(), nullable=True))
        op.execute(sa.table(table, sa.column(name, sa.JSON())).update().values({name: empty}))
        with op.batch_alter_table(table) as batch:
            batch.alter_column(name, existing_type=sa.JSON(), nullable=False)
    for table, name in INDEXES:
        op.create_index(f"ix_{table}_{name}", table, [name])
    for table in ("volumes", "snapshots"):
        op.create_index(f"ix_{table}_tenant_uuid", table, ["tenant_id", "uuid"])
    op.create_index("ix_replicas_state_freshness", "replicas", ["state", "freshness"])


def _pools() -> None:
    op.create_table(
        "pools",
        sa.Column("backend_id", NAME, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spans", sa.Boolean(), nullable=False),
        sa.Column("total_bytes", BIG, nullable=False),
        sa.Column("used_bytes", BIG, nullable=False),
        sa.Column("metadata_percent", sa.Float(), nullable=False),
        sa.Column("charged_bytes", BIG, nullable=False),
        sa.Column("sold_iops", BIG, nullable=False),
        sa.Column("sold_bw", BIG, nullable=False),
        sa.Column("replicas", BIG, nullable=False),
        sa.Column("declared_iops", BIG, nullable=False),
        sa.Column("declared_bw", BIG, nullable=False),
        sa.Column("measured_iops", BIG, nullable=False),
        sa.Column("measured_bw", BIG, nullable=False),
        sa.Column("iops", BIG, nullable=False),
        sa.Column("bw", BIG, nullable=False),
        sa.Column("used_at", BIG, nullable=False),
        sa.Column("ssds", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["backend_id"], ["backends.persistent_id"]),
        sa.PrimaryKeyConstraint("backend_id", "name"),
    )


def _tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("uuid", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("capacity", BIG, nullable=False),
        sa.Column("total_iops", BIG, nullable=False),
        sa.Column("total_bw", BIG, nullable=False),
        sa.Column("used_capacity", BIG, nullable=False),
        sa.Column("used_iops", BIG, nullable=False),
        sa.Column("used_bw", BIG, nullable=False),
        sa.Column("generation", BIG, nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
        sa.UniqueConstraint("name"),
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("uuid", UUID, nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False, index=True),
        sa.Column("host_id", NAME, nullable=False, index=True),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("volume_id", UUID, nullable=False, index=True),
        sa.Column("replica_id", UUID, nullable=False),
        sa.Column("new_replica_id", UUID, nullable=False),
        sa.Column("backend_id", NAME, nullable=False, index=True),
        sa.Column("parent", UUID, nullable=False, index=True),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("task_status", sa.String(length=64), nullable=False),
        sa.Column("status_description", sa.Text(), nullable=False),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.Column("created", BIG, nullable=False),
        sa.Column("updated", BIG, nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
    )


def _events() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "events",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("seq", BIG, nullable=False, index=True),
        sa.Column("time", BIG, nullable=False, index=True),
        sa.Column("type", sa.String(length=48), nullable=False),
        sa.Column("level", sa.String(length=8), nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("volume_id", UUID, nullable=False, index=True),
        sa.Column("replica_id", UUID, nullable=False),
        sa.Column("backend_id", NAME, nullable=False),
        sa.Column("host_id", NAME, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", BIG, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _identity() -> None:
    table = op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("uuid", UUID, nullable=False),
        sa.Column("branch", UUID, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("made", BIG, nullable=False),
        sa.Column("past", sa.JSON(), nullable=False),
        sa.Column("away", sa.JSON(), nullable=False),
        sa.Column("doubt", sa.String(length=16), nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    first = {"id": 1, "uuid": str(uuid.uuid4()), "branch": str(uuid.uuid4())}
    first |= {"number": 0, "made": int(time.time() * 1000), "past": [], "away": []}
    op.bulk_insert(table, [first | {"doubt": "", "since": 0, "reason": ""}])


def _instances() -> None:
    op.create_table(
        "instances",
        sa.Column("uuid", UUID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("started", BIG, nullable=False),
        sa.Column("heartbeat", BIG, nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
    )
    op.create_table(
        "leases",
        sa.Column("name", NAME, nullable=False),
        sa.Column("instance_id", UUID, nullable=False, index=True),
        sa.Column("token", UUID, nullable=False),
        sa.Column("taken", BIG, nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.uuid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name"),
    )


def _others() -> None:
    op.create_table(
        "garbage",
        sa.Column("backend_id", NAME, nullable=False),
        sa.Column("uuid", UUID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("bytes", BIG, nullable=False),
        sa.Column("first_seen", BIG, nullable=False),
        sa.Column("last_seen", BIG, nullable=False),
        sa.Column("acknowledged", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("backend_id", "uuid"),
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("jti", UUID, nullable=False),
        sa.Column("expires", BIG, nullable=False, index=True),
        sa.PrimaryKeyConstraint("jti"),
    )


def _fill() -> None:
    op.execute("UPDATE volumes SET unsettled = 'extend' WHERE wanted_capacity <> capacity")
    backends = sa.table(
        "backends",
        sa.column("persistent_id"),
        sa.column("total_bytes"),
        sa.column("used_bytes"),
    )
    connection = op.get_bind()
    for backend_id, total, used in connection.execute(sa.select(*backends.c)).all():
        row = {
            "backend_id": backend_id,
            "name": POOL,
            "state": "ok",
            "spans": False,
            "total_bytes": total,
            "used_bytes": used,
            "metadata_percent": 0.0,
            "charged_bytes": _charged(connection, backend_id),
            "replicas": _replicas(connection, backend_id),
            "ssds": [],
        }
        row |= dict.fromkeys(NUMBERS, 0)
        connection.execute(POOLS.insert().values(row))


def _replicas(connection: sa.Connection, backend_id: str) -> int:
    table = sa.table("replicas", sa.column("backend_id"))
    query = sa.select(sa.func.count()).where(table.c.backend_id == backend_id)
    return int(connection.execute(query).scalar() or 0)


def _charged(connection: sa.Connection, backend_id: str) -> int:
    total = 0
    for name in ("replicas", "snapshot_parts", "removals"):
        table = sa.table(
            name, sa.column("backend_id"), sa.column("reserved_bytes"), sa.column("done")
        )
        query = sa.select(sa.func.sum(table.c.reserved_bytes)).where(
            table.c.backend_id == backend_id
        )
        if name == "removals":
            query = query.where(table.c.done.is_(None))
        total += int(connection.execute(query).scalar() or 0)
    return total
