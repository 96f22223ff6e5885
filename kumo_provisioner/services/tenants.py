# SPDX-License-Identifier: Apache-2.0
"""Tenants and their budgets.

The default tenant has no row: its budget is what the connected nodes have. Every other one has a
budget of capacity (GiB, each replica counted) and of guaranteed operations and bandwidth (counted
once for each volume). What is used is kept in the row and changed by one conditional statement, so
two provisioners cannot spend the same rest.
"""

from __future__ import annotations

import uuid as uuidlib
from typing import Any

from oslo_log import log
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas import tenant as wire
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import capacity, events

LOG = log.getLogger(__name__)
# Budget, what is used of it, and the words for both.
BUDGETS = (
    ("capacity", "used_capacity", "GiB"),
    ("total_iops", "used_iops", "guaranteed operations per second"),
    ("total_bw", "used_bw", "KB/s of guaranteed bandwidth"),
)
RECOUNT_SECONDS = 600.0


def missing(tenant: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no tenant {tenant}")


def list_all(core: Core, tenant: str | None = None) -> list[wire.Tenant]:
    """All tenants, the default one first, or one as a list of length 1.

    :raises NotExistsError: when there is no tenant of that id.
    """
    found = []
    with core.db.read() as session:
        if tenant in (None, wire.DEFAULT_TENANT):
            found.append(_default(session))
        query = select(models.Tenant).order_by(models.Tenant.name)
        if tenant is not None:
            query = query.filter_by(uuid=tenant)
        found += [_view(row) for row in session.scalars(query)]
    if not found:
        raise missing(tenant or "")
    return found


def _default(session: Session) -> wire.Tenant:
    # Rounded up, so that the difference is really free.
    total, used = capacity.totals(session)
    return wire.Tenant(
        tenant_id=wire.DEFAULT_TENANT,
        name="default",
        capacity=total // GIB,
        consumed_capacity=-(-used // GIB),
    )


def _view(row: models.Tenant) -> wire.Tenant:
    return wire.Tenant(
        tenant_id=row.uuid,
        name=row.name,
        capacity=row.capacity,
        consumed_capacity=row.used_capacity,
        total_iops=row.total_iops,
        total_bw=row.total_bw,
        consumed_iops=row.used_iops,
        consumed_bw=row.used_bw,
    )


def check(core: Core, tenant: str) -> str:
    """The tenant of a path.

    :raises NotExistsError: when there is no such tenant.
    """
    if tenant != wire.DEFAULT_TENANT:
        with core.db.read() as session:
            if session.get(models.Tenant, tenant) is None:
                raise missing(tenant)
    return tenant


# -- fleet --------------------------------------------------------------------------------------


def create(core: Core, request: wire.TenantWrite, reserved: frozenset[str]) -> str:
    """Make a tenant; gives its id.

    :param reserved: first segments of the paths of the API, which no tenant can be called.
    :raises InvalidInputError: when the id is one of these.
    :raises AlreadyExistsError: when id or name is taken.
    """
    tenant = request.tenant_id or uuidlib.uuid4().hex
    if tenant in reserved:
        raise errors.InvalidInputError(f"a tenant cannot have the id {tenant}, it is a path")

    def write(session: Session) -> None:
        _refuse_taken(session, tenant, request.name)
        row = models.Tenant(uuid=tenant, name=request.name)
        _take_over(row, request)
        session.add(row)
        events.record(session, "tenant.created", f"tenant {tenant} ({row.name})", tenant=tenant)

    core.db.run(write)
    return tenant


def _refuse_taken(session: Session, tenant: str, name: str) -> None:
    if tenant == wire.DEFAULT_TENANT or session.get(models.Tenant, tenant) is not None:
        raise errors.AlreadyExistsError(f"tenant {tenant} exists already")
    other = session.scalar(select(models.Tenant.uuid).filter_by(name=name))
    if other is not None:
        raise errors.AlreadyExistsError(f"the name {name} is that of tenant {other}")


def _take_over(row: models.Tenant, request: wire.TenantWrite) -> None:
    row.capacity = request.capacity
    row.total_iops = request.total_iops
    row.total_bw = request.total_bw
    row.used_capacity = row.used_capacity or 0
    row.used_iops = row.used_iops or 0
    row.used_bw = row.used_bw or 0
    row.generation = (row.generation or 0) + 1


def change(core: Core, tenant: str, request: wire.TenantWrite) -> None:
    """Set name and budgets. A budget below what is used only stops what is new.

    :raises NotExistsError: when there is none.
    :raises InvalidInputError: for the default tenant, whose budget is that of the nodes.
    :raises AlreadyExistsError: when the name is taken.
    """
    if tenant == wire.DEFAULT_TENANT:
        raise errors.InvalidInputError("the budget of the default tenant is what the nodes have")

    def write(session: Session) -> None:
        row = session.get(models.Tenant, tenant, with_for_update=True)
        if row is None:
            raise missing(tenant)
        other = session.scalar(select(models.Tenant.uuid).filter_by(name=request.name))
        if other not in (None, tenant):
            raise errors.AlreadyExistsError(f"the name {request.name} is that of tenant {other}")
        row.name = request.name
        _take_over(row, request)
        events.record(session, "tenant.changed", f"tenant {tenant} ({row.name})", tenant=tenant)

    core.db.run(write)


def delete(core: Core, tenant: str) -> None:
    """Forget a tenant.

    :raises NotExistsError: when there is none.
    :raises InUseError: while it has volumes or snapshots, or is the default one.
    """
    if tenant == wire.DEFAULT_TENANT:
        raise errors.InUseError("the default tenant is always there")

    def write(session: Session) -> None:
        row = session.get(models.Tenant, tenant, with_for_update=True)
        if row is None:
            raise missing(tenant)
        for table, what in ((models.Volume, "volumes"), (models.Snapshot, "snapshots")):
            if session.scalar(select(table.uuid).filter_by(tenant_id=tenant).limit(1)):
                raise errors.InUseError(
                    f"tenant {tenant} has {what}", way_out="delete or unmanage them first"
                )
        session.delete(row)
        events.record(session, "tenant.deleted", f"tenant {tenant} ({row.name})", tenant=tenant)

    core.db.run(write)


# -- budgets ------------------------------------------------------------------------------------


def charge(session: Session, tenant: str, *, gib: int = 0, iops: int = 0, bw: int = 0) -> None:
    """Spend some of a tenant's budget, or (negative) give it back.

    :param gib: capacity in GiB, every replica counted.
    :param iops: guaranteed operations per second; ``bw`` in KB/s. Once for each volume.
    :raises OverBudgetError: when the budget has not that much left; nothing was spent.
    :raises NotExistsError: when the tenant is gone.
    """
    amounts = dict(zip((used for _, used, _ in BUDGETS), (gib, iops, bw), strict=True))
    if tenant == wire.DEFAULT_TENANT or not any(amounts.values()):
        return
    statement = update(models.Tenant).where(models.Tenant.uuid == tenant)
    for budget, used, _ in BUDGETS:
        if amounts[used] > 0:
            limit, now = getattr(models.Tenant, budget), getattr(models.Tenant, used)
            statement = statement.where((limit == 0) | (now + amounts[used] <= limit))
    values = {used: getattr(models.Tenant, used) + amount for used, amount in amounts.items()}
    values["generation"] = models.Tenant.generation + 1
    done = session.execute(statement.values(values).execution_options(synchronize_session=False))
    assert isinstance(done, CursorResult)  # noqa: S101 - an UPDATE gives that
    if done.rowcount == 0:
        raise _over(session, tenant, amounts)


def _over(session: Session, tenant: str, amounts: dict[str, int]) -> errors.KumoError:
    row = session.get(models.Tenant, tenant, populate_existing=True)
    if row is None:
        return missing(tenant)
    told = []
    for budget, used, unit in BUDGETS:
        limit, now = getattr(row, budget), getattr(row, used)
        if limit and amounts[used] > 0 and now + amounts[used] > limit:
            told.append(f"{amounts[used]} {unit} are asked for, {now} of {limit} are used")
    return errors.OverBudgetError(
        f"the budget of tenant {tenant} is too small: {'; '.join(told)}",
        way_out="delete volumes of the tenant, or raise its budget",
        details={"tenant": tenant, "asked": amounts},
    )


def use(row: models.Volume, gib: int | None = None) -> dict[str, int]:
    """What a volume takes of its tenant's budget, as :func:`charge` wants it.

    :param gib: with that size instead of its own.
    """
    size = row.wanted_capacity if gib is None else gib
    asked = StorageClass.model_validate(row.storage_class)
    return {
        "gib": size * row.num_replicas,
        "iops": size * asked.desired_iops_per_gb,
        "bw": size * asked.desired_bw_per_gb,
    }


def take(session: Session, row: models.Volume) -> None:
    """Charge the tenant of a new volume with it.

    :raises OverBudgetError: see :func:`charge`.
    """
    # The default tenant has no budget.
    if row.tenant_id != wire.DEFAULT_TENANT:
        charge(session, row.tenant_id, **use(row))


def refuse(session: Session, row: models.Volume) -> None:
    """Make sure that the tenant of a volume that is only thought of could pay for it.

    :raises OverBudgetError: when its budget has not that much left.
    """
    tenant = session.get(models.Tenant, row.tenant_id)
    if tenant is None:
        return
    amounts = dict(zip((used for _, used, _ in BUDGETS), use(row).values(), strict=True))
    for budget, used, _ in BUDGETS:
        limit = getattr(tenant, budget)
        if limit and amounts[used] > 0 and getattr(tenant, used) + amounts[used] > limit:
            raise _over(session, row.tenant_id, amounts)


def give_back(session: Session, row: models.Volume) -> None:
    """Give back what a volume that goes has taken."""
    charge(session, row.tenant_id, **{name: -amount for name, amount in use(row).items()})


def exchange(session: Session, tenant: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Charge a tenant with the difference of two results of :func:`use`.

    :raises OverBudgetError: see :func:`charge`.
    """
    charge(session, tenant, **{name: after[name] - before[name] for name in after})


def recount(session: Session, tenant: str) -> bool:
    """Add up what a tenant uses and correct the row; whether it was wrong."""
    row = session.get(models.Tenant, tenant, with_for_update=True, populate_existing=True)
    if row is None:
        return False
    total = {"gib": 0, "iops": 0, "bw": 0}
    volumes = select(models.Volume).filter_by(tenant_id=tenant)
    for volume in session.scalars(volumes.execution_options(yield_per=500)):
        for name, amount in use(volume).items():
            total[name] += amount
    seen: dict[str, Any] = {"gib": row.used_capacity, "iops": row.used_iops, "bw": row.used_bw}
    if seen == total:
        return False
    row.used_capacity, row.used_iops, row.used_bw = total["gib"], total["iops"], total["bw"]
    events.record(
        session,
        "capacity.corrected",
        f"tenant {tenant} was charged with {seen} and uses {total}",
        level=events.WARN,
        tenant=tenant,
    )
    return True


def _recount_all(core: Core) -> None:
    with core.db.read() as session:
        tenants = session.scalars(select(models.Tenant.uuid)).all()
    for tenant in tenants:
        with core.db.write() as session:
            recount(session, tenant)


DUTIES = (Duty("tenants", _recount_all, lambda _core: RECOUNT_SECONDS),)
