# SPDX-License-Identifier: Apache-2.0
"""What the scheduler gets to know."""

import pytest
from cinder.common import constants

from tests.unit.driver import kumoscale


def pool(driver):
    stats = driver.get_volume_stats(refresh=True)
    [found] = stats["pools"]
    return found


def test_capacity_is_that_of_the_available_nodes(driver, server, make_volume):
    server.nodes["node-3"]["state"] = "Unavailable"
    driver.create_volume(make_volume(size=30))
    found = pool(driver)
    assert (found["total_capacity_gb"], found["free_capacity_gb"]) == (200, 170)
    assert found["provisioned_capacity_gb"] == 30


def test_flags(driver):
    stats = driver.get_volume_stats(refresh=True)
    assert stats["storage_protocol"] == constants.NVMEOF
    assert stats["driver_version"] == driver.VERSION
    assert stats["volume_backend_name"] == "fast"
    assert stats["vendor_name"]
    found = pool(driver)
    assert found["pool_name"] == "fast" == driver.get_pool(None)
    assert found["multiattach"] is True
    assert found["online_extend_support"] is True
    assert found["QoS_support"] is False
    assert found["thin_provisioning_support"] is True
    assert found["thick_provisioning_support"] is True
    assert found["backend_state"] == "up"


def test_default_of_two_replicas_halves_what_is_there(make_driver):
    found = pool(make_driver("kioxia_num_replicas = 2"))
    assert (found["total_capacity_gb"], found["free_capacity_gb"]) == (150, 150)


@pytest.mark.parametrize(("kind", "ratio"), [("THICK", 1.0), ("THIN", "7.5")])
def test_over_subscription_follows_the_default_provisioning(make_driver, kind, ratio):
    driver = make_driver(f"kioxia_provisioning_type = {kind}", "max_over_subscription_ratio = 7.5")
    assert pool(driver)["max_over_subscription_ratio"] == ratio


def test_tenant_budget_lowers_the_capacity(driver, server):
    server.tenants = [
        {"tenantId": "7", "capacity": 1, "consumedCapacity": 1},
        {"tenantId": "0", "capacity": 50, "consumedCapacity": 20},
    ]
    found = pool(driver)
    assert (found["total_capacity_gb"], found["free_capacity_gb"]) == (50, 30)


def test_no_answer_is_down_and_nothing_free(driver, server):
    assert pool(driver)["free_capacity_gb"] == 300
    server.fail("GET /backends", kumoscale.Refused("InternalError", "a defect", 500))
    found = pool(driver)
    assert (found["free_capacity_gb"], found["backend_state"]) == (0, "down")
    assert pool(driver)["backend_state"] == "up"


def test_capabilities_name_the_extra_specs(driver):
    driver.init_capabilities()
    properties = driver.capabilities["properties"]
    assert driver.capabilities["vendor_prefix"] == "kumo"
    assert properties["kumo:num_replicas"]["type"] == "integer"
    assert properties["kumo:num_replicas"]["default"] == 1
    assert properties["kumo:same_rack_allowed"]["type"] == "boolean"
