# SPDX-License-Identifier: Apache-2.0
"""Long lists, and where a volume would go."""

import pytest

from kumo_client import errors
from kumo_provisioner.db import models
from kumo_provisioner.services import paging, volumes
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, made_snapshot, rows


def pages(web, path, limit):
    found, after = [], ""
    while True:
        page = web.get(path, params={"limit": limit, "after": after}).json()
        found += page
        if len(page) < limit:
            return found
        after = page[-1].get("uuid") or page[-1]["snapshotID"]


@pytest.fixture
def seven(core, three):
    return [volumes.create(core, T, volume(f"v{number}")) for number in range(7)]


def test_pages_hold_everything_once(web, core, seven, monkeypatch):
    monkeypatch.setattr(paging, "CHUNK", 2)
    whole = web.get("/volumes").json()
    assert [one["uuid"] for one in whole] == seven, "oldest first"
    paged = pages(web, "/volumes", 3)
    assert [one["uuid"] for one in paged] == sorted(seven)
    assert sorted(paged, key=lambda one: one["alias"]) == [
        one | {"location": paged_one["location"]}
        for one, paged_one in zip(whole, sorted(paged, key=lambda one: one["alias"]), strict=True)
    ]
    made_snapshot(core, seven[0], "s0")
    made_snapshot(core, seven[0], "s1")
    assert [one["alias"] for one in web.get("/snapshots").json()] == ["s0", "s1"]
    assert len(pages(web, "/snapshots", 1)) == 2


def test_a_page_follows_also_an_object_that_is_gone(web, core, seven):
    first = web.get("/volumes", params={"limit": 3}).json()
    volumes.delete(core, T, first[-1]["uuid"])
    rest = web.get("/volumes", params={"limit": 9, "after": first[-1]["uuid"].upper()}).json()
    assert [one["uuid"] for one in first + rest] == sorted(seven)


def test_a_list_stays_a_list_when_its_objects_go_meanwhile(web, core, seven, monkeypatch):
    monkeypatch.setattr(paging, "CHUNK", 2)
    chunks = volumes.listed(core, T)
    first = next(chunks)
    for uid in seven[2:6]:
        volumes.delete(core, T, uid)
    assert [one.uuid for chunk in [first, *chunks] for one in chunk] == [*seven[:2], seven[6]]

    real = volumes.listed

    def vanishing(*args):
        yield []
        for chunk in real(*args):
            yield chunk
            yield []

    monkeypatch.setattr(volumes, "listed", vanishing)
    assert [one["uuid"] for one in web.get("/volumes").json()] == [*seven[:2], seven[6]]
    for uid in (*seven[:2], seven[6]):
        volumes.delete(core, T, uid)
    assert web.get("/volumes").json() == []


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": "x"}, {"limit": 99999}, {"after": "x"}])
def test_wrong_pages_are_refused(web, params):
    answer = web.get("/volumes", params=params)
    assert answer.status_code == 400
    assert answer.json()["status"] == "InvalidInput"


def body(**extra):
    return {"alias": "v", "capacity": 1, "storageClass": {"numReplicas": 3}} | extra


def test_a_dry_run_tells_where_and_why_and_records_nothing(web, core):
    add_node(core, zone="z1")
    before = [one.generation for one in rows(core, models.Backend)]
    asked = body(storageClass={"numReplicas": 3, "zones": ["nova"]})
    answer = web.post("/volumes?dryRun=true", json=asked).json()
    assert answer["status"] == "Success"
    assert [one["chosen"] for one in answer["nodes"]] == [True, True, True, False]
    refused = answer["nodes"][3]
    assert (refused["refusedBy"], refused["reason"]) == ("zone", "its zone z1 is not one of nova")
    assert rows(core, models.Volume) == rows(core, models.Replica) == []
    assert [one.generation for one in rows(core, models.Backend)] == before
    made = web.post("/volumes", json=asked).json()
    chosen = {one["backendId"] for one in answer["nodes"] if one["chosen"]}
    place = web.get(f"/volumes/{made['uuid']}").json()[0]["location"]
    assert {one["backend"]["persistentID"] for one in place} == chosen


def test_a_dry_run_that_finds_no_place_is_an_answer(web):
    answer = web.post("/volumes?dryRun=true", json=body(capacity=1000))
    told = answer.json()
    assert answer.status_code == 200
    assert told["status"] == errors.NoSpaceError.code
    assert {one["refusedBy"] for one in told["nodes"]} == {"capacity"}
    assert not any(one["chosen"] for one in told["nodes"])
    assert "only 0 can take one" in told["description"]


def test_a_dry_run_of_what_exists_is_refused_like_a_create(web):
    made = web.post("/volumes", json=body()).json()
    for again in (body(), body(alias="other", uuid=made["uuid"])):
        assert web.post("/volumes?dryRun=true", json=again).json()["status"] == "AlreadyExists"


def test_a_dry_run_keeps_to_the_budget(web):
    assert web.post("/tenants", json={"tenantId": "t", "name": "t", "capacity": 3}).json()
    assert web.post("/t/volumes?dryRun=true", json=body()).json()["status"] == "Success"
    more = web.post("/t/volumes?dryRun=true", json=body(capacity=2)).json()
    assert more["status"] == "OverBudget"
    assert web.post("/t/volumes", json=body()).json()["status"] == "Success"
    assert web.get("/tenants/t").json()[0]["consumedCapacity"] == 3
    assert web.post("/t/volumes", json=body(alias="w")).json()["status"] == "OverBudget"
    uid = web.get("/t/volumes").json()[0]["uuid"]
    assert web.patch(f"/t/volumes/{uid}", json={"newCapacity": 2}).json()["status"] == "OverBudget"
    assert web.delete(f"/t/volumes/{uid}").json()["status"] == "Success"
    assert web.get("/tenants/t").json()[0]["consumedCapacity"] == 0
