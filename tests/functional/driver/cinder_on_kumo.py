# SPDX-License-Identifier: Apache-2.0
"""Cinder's own API tests with our driver as the volume driver.

Run in a process of its own (``python -m unittest``), because Cinder's test base patches the
standard library for green threads. Everything is Cinder's but three settings: the volume driver
with its options, and two files that an installed Cinder has in another place than its source tree.
The provisioner is named by the environment: KUMO_TEST_URL, KUMO_TEST_CA_FILE and
KUMO_TEST_TOKEN_FILE.
"""

# As cinder-volume does: ssl and urllib3 loaded before this patch recurse without end in
# SSLContext.minimum_version.
from cinder import monkey_patch

monkey_patch.patch()

import os  # noqa: E402
import sys  # noqa: E402
import unittest  # noqa: E402

from cinder import service  # noqa: E402
from cinder.tests.functional import (  # noqa: E402
    test_group_snapshots,
    test_groups,
    test_volumes,
)
from cinder.volume import configuration  # noqa: E402
from oslo_config import cfg  # noqa: E402

from cinder_kumo import conf  # noqa: E402

ETC = os.path.join(sys.prefix, "etc", "cinder")


class OnKumo:
    """Mixed into a test class of Cinder."""

    RESOURCE_FILTER_PATH = os.path.join(ETC, "resource_filters.json")

    def _get_flags(self):
        group = configuration.SHARED_CONF_GROUP
        for opt in conf.OPTS:
            configuration.CONF.register_opt(opt, group=group)
        return super()._get_flags() | {
            # The scheduler waits for the second report of a backend whose statistics are complete.
            "scheduler_driver_init_wait_time": {"v": 1},
            "volume_driver": {"v": "cinder_kumo.driver.KumoVolumeDriver", "g": group},
            "kumo_urls": {"v": [os.environ["KUMO_TEST_URL"]], "g": group},
            "kumo_ca_file": {"v": os.environ["KUMO_TEST_CA_FILE"], "g": group},
            "kumo_token_file": {"v": os.environ["KUMO_TEST_TOKEN_FILE"], "g": group},
        }

    def _start_api_service(self):
        cfg.CONF.api_paste_config = os.path.join(ETC, "api-paste.ini")
        self.osapi = service.WSGIService("osapi_volume")
        self.osapi.start()
        self.auth_url = f"http://{self.osapi.host}:{self.osapi.port}/v{self.osapi_version_major}"


class VolumesOnKumo(OnKumo, test_volumes.VolumesTest):
    """Volumes."""


class GroupsOnKumo(OnKumo, test_groups.GroupsTest):
    """Groups."""


class GroupSnapshotsOnKumo(OnKumo, test_group_snapshots.GroupSnapshotsTest):
    """Group snapshots, and groups made from them."""


def load_tests(loader, standard, pattern):
    """The part of the tests that KUMO_TEST_SHARD names: ``0/4`` is the first of four."""
    index, count = (int(part) for part in os.environ.get("KUMO_TEST_SHARD", "0/1").split("/"))
    cases = [case for suite in standard for case in suite]
    return unittest.TestSuite(cases[index::count])
