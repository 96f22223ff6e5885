# SPDX-License-Identifier: Apache-2.0
"""Tenants: budgets, and what keeps them apart."""

import threading

import pytest

from kumo_client import errors
from kumo_client.schemas.tenant import TenantWrite
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner.db import models
from kumo_provisioner.services import snapshots, tenants, volumes
from tests.unit.provisioner.conftest import volume
from tests.unit.provisioner.stories import rows


def made(core, tenant="red", **budget):
    return tenants.create(
        core, TenantWrite(tenant_id=tenant, name=f"name of {tenant}", **budget), frozenset()
    )


def charged(core, tenant="red", **amounts):
    with core.db.write() as session:
        tenants.charge(session, tenant, **amounts)


def used(core):
    (row,) = rows(core, models.Tenant)
    return row.used_capacity, row.used_iops, row.used_bw


def test_a_budget_is_hard_and_says_which_part_is_too_small(core):
    made(core, capacity=10, total_iops=100, total_bw=0)
    charged(core, gib=10, iops=100, bw=1 << 30)
    with pytest.raises(errors.OverBudgetError, match="1 GiB are asked for, 10 of 10 are used"):
        charged(core, gib=1)
    with pytest.raises(errors.OverBudgetError, match="guaranteed operations") as caught:
        charged(core, gib=0, iops=5)
    assert caught.value.details["asked"] == {
        "used_capacity": 0,
        "used_iops": 5,
        "used_bw": 0,
    }
    assert used(core) == (10, 100, 1 << 30)
    charged(core, gib=-10, iops=-100, bw=-(1 << 30))
    assert used(core) == (0, 0, 0)


def test_a_lowered_budget_stops_only_what_is_new(core):
    made(core, capacity=10)
    charged(core, gib=8)
    tenants.change(core, "red", TenantWrite(name="red", capacity=4, total_iops=50))
    assert tenants.list_all(core, "red")[0].consumed_capacity == 8
    with pytest.raises(errors.OverBudgetError):
        charged(core, gib=1)
    charged(core, gib=-2, iops=50)
    assert used(core) == (6, 50, 0)


def test_ids_and_names(core):
    made(core)
    with pytest.raises(errors.AlreadyExistsError, match="tenant red"):
        made(core)
    with pytest.raises(errors.AlreadyExistsError, match="name"):
        tenants.create(core, TenantWrite(tenant_id="blue", name="name of red"), frozenset())
    with pytest.raises(errors.InvalidInputError, match="path"):
        tenants.create(core, TenantWrite(tenant_id="volumes", name="x"), frozenset({"volumes"}))
    with pytest.raises(errors.AlreadyExistsError):
        tenants.create(core, TenantWrite(tenant_id="0", name="x"), frozenset())
    made(core, "blue")
    with pytest.raises(errors.AlreadyExistsError):
        tenants.change(core, "blue", TenantWrite(name="name of red"))
    for missing in (
        lambda: tenants.change(core, "green", TenantWrite(name="green")),
        lambda: tenants.delete(core, "green"),
        lambda: tenants.list_all(core, "green"),
        lambda: tenants.check(core, "green"),
        lambda: charged(core, "green", gib=1),
    ):
        with pytest.raises(errors.NotExistsError):
            missing()


def test_the_default_tenant_is_always_there_and_has_no_limit(core):
    with pytest.raises(errors.InUseError):
        tenants.delete(core, "0")
    with pytest.raises(errors.InvalidInputError):
        tenants.change(core, "0", TenantWrite(name="x"))
    charged(core, "0", gib=1 << 40)
    assert [one.tenant_id for one in tenants.list_all(core)] == ["0"]


def test_a_tenant_with_volumes_stays(core):
    made(core)
    with core.db.write() as session:
        session.add(volume_row("v", 3, replicas=2, desired=10))
    with pytest.raises(errors.InUseError, match="volumes"):
        tenants.delete(core, "red")
    with core.db.write() as session:
        session.delete(session.get_one(models.Volume, "v"))
    tenants.delete(core, "red")
    assert rows(core, models.Tenant) == []


def volume_row(uid, gib, replicas, desired, tenant="red"):
    return models.Volume(
        uuid=uid,
        tenant_id=tenant,
        alias=uid,
        status=models.AVAILABLE,
        created=0,
        capacity=gib,
        wanted_capacity=gib,
        num_replicas=replicas,
        storage_class={"desiredIOPSPerGB": desired, "desiredBWPerGB": 2 * desired},
    )


def test_a_wrong_count_is_corrected_and_told(core):
    made(core)
    charged(core, gib=5)
    with core.db.write() as session:
        session.add(volume_row("v", 3, replicas=2, desired=10))
        session.add(volume_row("other", 7, replicas=1, desired=1, tenant="0"))
    (duty,) = tenants.DUTIES
    duty.run(core)
    assert used(core) == (6, 30, 60)
    assert [one.type for one in rows(core, models.Event)][-1] == "capacity.corrected"
    with core.db.write() as session:
        assert not tenants.recount(session, "red")
        assert not tenants.recount(session, "gone")


def test_callers_at_once_never_overspend(core):
    made(core, capacity=20)
    granted, refused = [], []

    def spend(gib):
        try:
            charged(core, gib=gib)
        except errors.OverBudgetError:
            refused.append(gib)
        else:
            granted.append(gib)

    threads = [threading.Thread(target=spend, args=(gib,)) for gib in (7, 3, 9, 2, 8, 5, 6, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used(core)[0] == sum(granted) <= 20
    assert len(granted) + len(refused) == 8
    # Whoever was refused last could not have been served from what is left.
    assert sum(granted) + refused[-1] > 20


def test_what_a_volume_takes_over_its_life(core, three):
    """Create, copy, extend, give up and delete leave the budget as the volumes are."""
    made(core, capacity=12, total_iops=100)
    asked = {"desired_iops_per_gb": 0}
    uid = volumes.create(core, "red", volume("a", 2, 2, asked=asked))
    assert used(core) == (4, 0, 0)
    with pytest.raises(errors.OverBudgetError):
        volumes.create(core, "red", volume("big", 5, 2))
    clone = CloneCreate(source_volume_id=uid, alias="clone")
    copy = snapshots.clone(core, "red", clone)
    assert used(core) == (8, 0, 0)
    with pytest.raises(errors.OverBudgetError):
        volumes.extend(core, "red", uid, 5)
    volumes.extend(core, "red", uid, 4)
    assert used(core) == (12, 0, 0)
    with pytest.raises(errors.OverBudgetError):
        snapshots.clone(core, "red", clone.model_copy(update={"alias": "another"}))
    volumes.delete(core, "red", copy)
    assert used(core) == (8, 0, 0)
    core.nodes.faults = {(port, "put_replica"): "lost request" for port in core.nodes.models}
    with pytest.raises(errors.BackendUnavailableError):
        volumes.create(core, "red", volume("b", 1, 1))
    core.nodes.faults.clear()
    assert used(core) == (8, 0, 0)
    with core.db.write() as session:
        assert not tenants.recount(session, "red")
    volumes.delete(core, "red", uid)
    assert used(core) == (0, 0, 0)
