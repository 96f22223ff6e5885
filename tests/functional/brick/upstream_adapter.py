# SPDX-License-Identifier: Apache-2.0
"""Run os-brick's own tests of its connector on the connector that the factory gives.

A program for an environment that has os-brick; it prints JSON: the class, what passed, and what
failed with its trace.
"""

import json

import pytest
from os_brick.initiator import connector
from os_brick.tests.initiator.connectors import test_nvmeof as upstream

CASES = upstream.NVMeOFConnectorTestCase
_set_up = CASES.setUp


def set_up(case):
    """As upstream, which makes a connector by the name of the stock class; then ours instead."""
    _set_up(case)
    case.connector = connector.InitiatorConnector.factory(
        "NVMEOF", None, execute=case.fake_execute, use_multipath=False
    )
    found.classes.add(f"{type(case.connector).__module__}.{type(case.connector).__name__}")


class Results:
    """How each case ended."""

    def __init__(self):
        self.classes, self.passed, self.failed = set(), [], {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed[name] = report.longreprtext
        elif report.when == "call" and report.passed:
            self.passed.append(name)


found = Results()
CASES.setUp = set_up
pytest.main(
    [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--pyargs",
        CASES.__module__,
    ],
    plugins=[found],
)
print("\n" + json.dumps(vars(found) | {"classes": sorted(found.classes)}))
