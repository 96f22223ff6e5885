# SPDX-License-Identifier: Apache-2.0
"""Requests made from the OpenAPI document, good and bad: no defect, and answers as declared."""

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from kumo_provisioner import app
from tests.fakes.fleet import ADDRESS, Fleet
from tests.fakes.provisioner import ProvisionerProcess
from tests.functional.provisioner.common import made_snapshot, made_volume, publish

DOCUMENT = app.describe().openapi()
# Short enough that a call to an address where nobody answers holds nothing up.
OPTIONS = {
    "nodes": {"connect_timeout": "0.3", "budget": "2", "probe_budget": "0.5"},
    "server": {"lock_timeout": "0"},
}
CONFORM = [content_type_conformance, response_schema_conformance]
OF_A_TENANT = r"^/\{tenantId\}"
schema = schemathesis.openapi.from_dict(DOCUMENT)


def bounded(examples):
    """Always the same examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class World:
    """A provisioner with three nodes, a published volume, a snapshot, and ids of all of them."""

    def __init__(self, provisioner, fleet):
        self.url = provisioner.url
        self.http = requests.Session()
        self.ca_file = provisioner.ca_file
        # Not left to the generator, which else would send other tokens most of the time.
        self.headers = {"Authorization": f"Bearer {provisioner.token}"}
        client = provisioner.client
        for node in fleet.add(3):
            provisioner.register(node)
        volume = made_volume(client, replicas=2)
        publish(client, volume)
        free = made_volume(client)
        leg = client.volume(volume).location[0].uuid
        node = fleet.nodes[0].persistent_id
        self.known = {
            "uuid": [volume, free, "host-1"],
            "vol_id": [volume],
            "volId": [volume],
            "rep_id": [leg],
            "id": [made_snapshot(client, free), "0"],
            "alias": [client.volume(free).alias],
            "persistentID": [node],
            "persistent_id": [node],
            "tenantId": ["0"],
        }

    def ask(self, case, choice):
        """Send a made-up request, about an object that exists if ``choice`` is not None."""
        if choice is not None:
            for name in case.path_parameters or {}:
                known = self.known.get(name, [case.path_parameters[name]])
                case.path_parameters[name] = known[choice % len(known)]
        if isinstance(case.query, dict) and "wait" in case.query:
            case.query["wait"] = 0
        if isinstance(case.body, dict) and isinstance(case.body.get("mgmtIPs"), list):
            # No test asks a stranger.
            case.body["mgmtIPs"] = [ADDRESS for _ in case.body["mgmtIPs"]]
        answer = case.call(
            base_url=self.url,
            session=self.http,
            headers=self.headers,
            verify=self.ca_file,
            timeout=30,
        )
        case.validate_response(answer, checks=CONFORM)
        judge(case, answer)


def judge(case, answer):
    where = f"{case.method} {case.path}: {answer.status_code} {answer.text[:500]}"
    assert answer.status_code != 422, where
    assert answer.content, where
    if answer.status_code >= 400:
        body = answer.json()
        assert body["status"], where
        assert body["description"], where
        assert "detail" not in body, where
        # A node that does not answer is no defect of the provisioner.
        assert answer.status_code < 500 or body["status"] == "BackendUnavailable", where


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    process = ProvisionerProcess(tmp_path_factory.mktemp("provisioner") / "kumo", OPTIONS)
    process.start()
    fleet = Fleet(process.node_certificate, process.node_token)
    try:
        yield World(process, fleet)
        assert "Traceback" not in process.log_text()
    finally:
        process.stop()
        fleet.close()


CHOICE = st.none() | st.integers(0, 2)


@schema.exclude(path_regex=OF_A_TENANT).given(choice=CHOICE)
@schema.exclude(path_regex=OF_A_TENANT).parametrize()
@bounded(12)
def test_requests_of_all_kinds(world, case, choice):
    world.ask(case, choice)


@schema.include(path_regex=OF_A_TENANT).given(choice=CHOICE)
@schema.include(path_regex=OF_A_TENANT).parametrize()
@bounded(4)
def test_with_a_tenant_in_front(world, case, choice):
    world.ask(case, choice)


def test_the_document_announces_what_is_answered():
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(operations) > 50
    assert not any("422" in one["responses"] for one in operations)
    assert "ValidationError" not in str(DOCUMENT)
    open_paths = {
        path
        for path, methods in DOCUMENT["paths"].items()
        if any(one.get("security") == [] for one in methods.values())
    }
    assert open_paths == {"/healthz", "/readyz", "/info"}
