# SPDX-License-Identifier: Apache-2.0
"""Starting a backend: what is wrong shows then, with a name."""

import logging
import ssl

import pytest
import requests
from cinder import context as cinder_context
from cinder import exception

from cinder_kumo import conf
from cinder_kumo.driver import KumoVolumeDriver
from tests.unit.driver import kumoscale


def start(driver):
    driver.do_setup(cinder_context.RequestContext())
    driver.check_for_setup_error()


def test_start_asks_info_tenants_and_backends(make_driver, server):
    driver = make_driver(setup=False)
    start(driver)
    assert {"GET /info", "GET /tenants", "GET /backends"} <= set(server.names())
    sent = driver.adapter.requests[0]
    assert sent.headers["Authorization"] == "Bearer s3cret"
    assert sent.headers["User-Agent"].startswith("cinder-kumo/")
    assert sent.url.startswith("https://provisioner.example:8090/")


def test_existing_cinder_conf_needs_only_another_driver(make_driver, server):
    driver = make_driver(
        "kioxia_num_replicas = 2",
        "kioxia_max_iops_per_gb = 10",
        "kioxia_desired_iops_per_gb = 5",
        "kioxia_max_bw_per_gb = 20",
        "kioxia_desired_bw_per_gb = 7",
        "kioxia_same_rack_allowed = true",
        "kioxia_block_size = 512",
        "kioxia_writable = true",
        "kioxia_provisioning_type = THIN",
        "kioxia_vol_reserved_space_percentage = 1",
        "kioxia_snap_reserved_space_percentage = 2",
        "kioxia_snap_vol_reserved_space_percentage = 3",
        "kioxia_max_replica_down_time = 9",
        "kioxia_span_allowed = false",
        "kioxia_snap_vol_span_allowed = false",
    )
    assert {opt.name for opt in driver.get_driver_options()} >= {"kioxia_url", "kumo_urls"}
    assert driver.configuration.kioxia_provisioning_type == "THIN"


@pytest.mark.parametrize("capabilities", [(), kumoscale.ALL])
def test_no_storage_node_is_a_warning(make_driver, caplog, capabilities):
    caplog.set_level(logging.WARNING)
    driver = make_driver(state=kumoscale.KumoScale(capabilities, nodes=0))
    assert "no available storage node" in caplog.text
    assert driver.get_volume_stats()["pools"][0]["total_capacity_gb"] == 0


def test_refused_token_fails(make_driver, server):
    server.fail("GET /tenants", kumoscale.Refused("Unauthorized", "Status 401: no", 401))
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        start(make_driver(setup=False))
    assert "Unauthorized" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_untrusted_certificate_fails_at_once(make_driver, server):
    driver = make_driver(setup=False)
    driver.do_setup(cinder_context.RequestContext())
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_message = "self-signed certificate"
    driver.adapter.broken = requests.exceptions.SSLError(cause)
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        driver.check_for_setup_error()
    assert "check provisioner of backend fast" in str(caught.value)
    assert "https://provisioner.example:8090: its certificate is not trusted" in str(caught.value)
    assert driver.adapter.time == 0


def test_unreachable_provisioner_fails_after_the_budget(make_driver):
    driver = make_driver("kumo_request_budget = 30", setup=False)
    driver.do_setup(cinder_context.RequestContext())
    driver.adapter.broken = requests.ConnectTimeout("slow")
    with pytest.raises(exception.VolumeBackendAPIException, match="within 30 s"):
        driver.check_for_setup_error()
    assert 0 < driver.adapter.time <= 30


def test_wrong_option_fails_before_anything_is_sent(make_driver, server):
    with pytest.raises(exception.InvalidConfigurationValue, match="kumo_urls"):
        start(make_driver("kumo_urls = gopher://x", setup=False))
    assert server.calls == []


def test_number_out_of_range_fails(make_driver):
    with pytest.raises(ValueError, match="4"):
        start(make_driver("kioxia_num_replicas = 4", setup=False))


def test_block_size_is_checked_at_start(make_driver):
    with pytest.raises(exception.InvalidInput, match="set up backend fast failed: block_size"):
        start(make_driver("kioxia_block_size = 1024", setup=False))


def test_driver_is_not_used_before_setup(make_driver, make_volume):
    with pytest.raises(exception.DriverNotInitialized):
        make_driver(setup=False).delete_volume(make_volume())


def test_backend_name_defaults_to_the_class(make_driver):
    driver = make_driver("volume_backend_name =", setup=False)
    assert driver.get_pool(None) == "InMemoryDriver"


def test_identity():
    assert KumoVolumeDriver.VERSION in KumoVolumeDriver.__doc__
    assert KumoVolumeDriver.CI_WIKI_NAME
    assert KumoVolumeDriver.get_driver_options() is conf.OPTS
