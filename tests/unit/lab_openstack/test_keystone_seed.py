# SPDX-License-Identifier: Apache-2.0
import json
import re
from types import SimpleNamespace

import pytest

from lab.openstack import config, keystone_seed


class FakeKeystone:
    """The parts of Keystone's v3 API that seeding uses, with its state."""

    def __init__(self, password="right"):
        self.password, self.made, self.grants = (
            password,
            {"role": [{"id": "r", "name": "admin"}]},
            [],
        )

    def open(self, path, method, json=None, headers=None, base_url=None):
        if path == "/v3/auth/tokens":
            user = json["auth"]["identity"]["password"]["user"]
            right = user["password"] == self.password
            return self._answer(201 if right else 401, {}, {"X-Subject-Token": "token"})
        if headers.get("X-Auth-Token") != "token":
            return self._answer(401, {})
        if method == "PUT":
            self.grants.append(re.sub("/v3/projects/", "", path))
            return self._answer(204, {})
        kind = path.split("/")[2].split("?")[0].removesuffix("s")
        if method == "GET":
            name = path.partition("name=")[2]
            return self._answer(200, {"roles": [r for r in self.made[kind] if r["name"] == name]})
        items = self.made.setdefault(kind, [])
        items.append({**json[kind], "id": f"{kind}{len(items)}"})
        return self._answer(201, {kind: items[-1]})

    @staticmethod
    def _answer(status, body, headers=None):
        return SimpleNamespace(status_code=status, text=json.dumps(body), headers=headers or {})


def test_seeding_makes_catalogue_and_service_users():
    fake = FakeKeystone()
    keystone_seed.seed(keystone_seed.Api(fake), "right")

    assert {(s["name"], s["type"]) for s in fake.made["service"]} == {
        ("cinder", "block-storage"),
        ("glance", "image"),
    }
    assert len(fake.made["endpoint"]) == 6
    assert [user["name"] for user in fake.made["user"]] == list(config.SERVICE_USERS)
    assert [role["name"] for role in fake.made["role"]] == ["admin", "service"]
    assert len(fake.grants) == 2 * len(config.SERVICE_USERS)


def test_refusal_names_request_and_status():
    with pytest.raises(RuntimeError, match="POST /v3/auth/tokens: 401"):
        keystone_seed.seed(keystone_seed.Api(FakeKeystone()), "wrong")
