# SPDX-License-Identifier: Apache-2.0
"""Add services, endpoints and service users to a bootstrapped Keystone database.

``python -m lab.openstack.keystone_seed`` with OS_KEYSTONE_CONFIG_DIR and KUMO_SEED_PASSWORD set.
It speaks Keystone's real API, but to the application inside this process: no port is opened, so
a database can be prepared anywhere.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Protocol

from lab.openstack import config, keystone

ROLES = ("service", "admin")


class Client(Protocol):
    """werkzeug.test.Client, as far as it is used."""

    def open(self, *args: Any, **kwargs: Any) -> Any: ...


class Api:
    """Keystone's v3 API, called in process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._headers: dict[str, str] = {}

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request and return the answer.

        :raises RuntimeError: Keystone answered with an error status.
        """
        answer = self._client.open(
            path, method=method, json=body, headers=self._headers, base_url="http://localhost"
        )
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    def authenticate(self, password: str) -> None:
        """Be the admin in project admin from now on."""
        user = {"name": "admin", "password": password, "domain": {"id": "default"}}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }
        answer = self.call("POST", "/v3/auth/tokens", {"auth": auth})
        self._headers = {"X-Auth-Token": answer.headers["X-Subject-Token"]}

    def create(self, kind: str, **fields: Any) -> str:
        """Create one ``kind`` and return its id."""
        answer = self.call("POST", f"/v3/{kind}s", {kind: fields})
        return str(json.loads(answer.text)[kind]["id"])

    def role_id(self, name: str) -> str:
        """The id of role ``name``, made if missing."""
        roles = json.loads(self.call("GET", f"/v3/roles?name={name}").text)["roles"]
        return str(roles[0]["id"]) if roles else self.create("role", name=name)


def seed(api: Api, password: str) -> None:
    """Fill the catalogue and make the service users, all with ``password``."""
    api.authenticate(password)
    for (name, kind), url in keystone.ENDPOINTS.items():
        service = api.create("service", name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            api.create(
                "endpoint",
                service_id=service,
                interface=interface,
                url=url,
                region_id=config.REGION,
            )
    project = api.create("project", name="service", domain_id="default")
    roles = [api.role_id(name) for name in ROLES]
    for name in config.SERVICE_USERS:
        user = api.create("user", name=name, password=password, domain_id="default")
        for role in roles:
            api.call("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}")


def main() -> None:
    """Seed the database that Keystone's config names."""
    sys.argv = ["keystone"]
    from keystone.wsgi.api import application  # type: ignore[import-untyped]
    from werkzeug.test import Client as TestClient

    seed(Api(TestClient(application)), os.environ["KUMO_SEED_PASSWORD"])


if __name__ == "__main__":
    main()
