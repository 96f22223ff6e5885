# SPDX-License-Identifier: Apache-2.0
"""Events: numbers, readers who wait, and what is forgotten."""

import asyncio
import threading
import time

import pytest
import sqlalchemy.exc
from sqlalchemy import select

from kumo_client import errors
from kumo_client.schemas.event import ForwardLog
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.task import ConnectRequest, TaskUpdate
from kumo_provisioner.db import models
from kumo_provisioner.services import events, migration, tasks, volumes, watch
from tests.unit.provisioner.conftest import HOST, volume
from tests.unit.provisioner.stories import T, published, rows

STRANGE = "00000000-0000-4000-8000-000000000000"


def say(core, number=1, **about):
    for _ in range(number):
        with core.db.write() as session:
            events.record(session, "test.said", "something", **about)


def seen(core, **ask):
    page = events.page(core, events.Ask(**ask))
    return [one.seq for one in page.events], page.last


def test_numbers_follow_commits_not_beginnings(core):
    with core.db.write() as session:
        events.record(session, "test.first", "first")
    assert seen(core) == ([1], 1)
    # A row that becomes visible late although its id is small.
    with core.db.write() as session:
        session.add(models.Event(id=500, time=1, type="test.late", message=""))
    say(core)
    with core.db.write() as session:
        session.add(models.Event(id=100, time=1, type="test.later", message=""))
    assert seen(core, since=1) == ([2, 3, 4], 4)
    assert seen(core, since=4) == ([], 4)
    assert events.number(core) == 4


def test_pages_and_filters(core, three):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    last = seen(core, limit=1000)[1]
    say(core, 3, volume=uid)
    say(core, host="host-1")
    say(core, host="host-2")
    say(core, level="WARN")
    say(core, level="FATAL", tenant="7", volume=STRANGE)
    end = last + 7
    assert seen(core, since=last, limit=2) == ([last + 1, last + 2], last + 2)
    assert seen(core, since=last, volume_id=uid) == ([last + 1, last + 2, last + 3], end)
    mine = [last + 1, last + 2, last + 3, last + 4, last + 6]
    assert seen(core, since=last, host_id="host-1") == (mine, end)
    assert seen(core, since=last, level="WARN") == ([last + 6, last + 7], end)
    assert seen(core, tenant="7") == ([last + 7], end)
    with pytest.raises(errors.InvalidInputError):
        events.page(core, events.Ask(level="LOUD"))


def test_old_events_are_forgotten_and_readers_are_told(core):
    core.conf.set_override("keep", 100, group="events")
    with core.db.write() as session:
        for _ in range(1150):
            events.record(session, "test.said", "something")
    assert events.forget(core) == 1050
    assert events.forget(core) == 0
    page = events.page(core, events.Ask(since=1040, limit=5))
    assert page.lost
    assert [one.seq for one in page.events] == [1051, 1052, 1053, 1054, 1055]
    assert not events.page(core, events.Ask(since=1050)).lost
    # The database was restored from an older copy.
    assert events.page(core, events.Ask(since=2000)).lost
    with core.db.write() as session:
        for row in session.scalars(select(models.Event).where(models.Event.seq <= 1100)):
            row.time -= 31 * events.DAY_MS
    assert events.forget(core) == 50


def test_what_old_clients_take_for_an_error_is_never_said(core):
    uid = "Status 401"
    request = ForwardLog(
        level="FATAL",
        host="h",
        app_name="nvmeof_agent",
        message=f"degraded\x00 {uid}",
        parameters_list={"Status 404": [uid, {"deep": (uid,)}], "number": 3},
    )
    events.forward(core, request)
    events.forward(core, ForwardLog(level="loud", parameters_list={"x": "y" * 9000}))
    first, second = events.page(core, events.Ask()).events
    assert (first.type, first.level, first.host_id) == ("log.forwarded", "FATAL", "h")
    assert "Status 4" not in first.model_dump_json()
    assert "Status-401" in first.message
    assert first.details["parameters"]["number"] == 3
    assert second.level == "INFO"
    assert len(second.details["parameters"]["text"]) == events.MAX_DETAILS


# -- waiting --------------------------------------------------------------------------------------


async def waited(core, seconds, **ask):
    begun = time.monotonic()
    page = await events.wait(core, events.Ask(**ask), seconds)
    return [one.seq for one in page.events], time.monotonic() - begun


def later(core, action):
    """Do something in another thread, as a request that is worked on meanwhile does."""
    thread = threading.Timer(0.2, action)
    thread.start()
    return thread


def test_a_reader_is_woken_by_a_commit_at_once(core):
    core.conf.set_override("poll_interval", 30, group="events")
    say(core)

    async def story():
        thread = later(core, lambda: say(core))
        first, second = await asyncio.gather(
            waited(core, 20, since=1), waited(core, 20, since=1, level="INFO")
        )
        thread.join()
        return first, second

    for found, took in asyncio.run(story()):
        assert found == [2]
        assert took < 10


def test_a_reader_finds_what_another_process_wrote(core):
    core.conf.set_override("poll_interval", 0.05, group="events")

    def elsewhere():
        with core.db.write() as session:
            session.add(models.Event(time=1, type="test.said", message=""))

    async def story():
        thread = later(core, elsewhere)
        found = await waited(core, 20)
        thread.join()
        return found

    found, took = asyncio.run(story())
    assert found == [1]
    assert took < 10


def test_a_reader_waits_no_longer_than_it_asked_for(core):
    core.conf.set_override("poll_interval", 0.05, group="events")
    say(core)

    async def story():
        thread = later(core, lambda: say(core))
        found = await waited(core, 0.5, since=1, volume_id=STRANGE)
        thread.join()
        return found

    found, took = asyncio.run(story())
    assert found == []
    assert took >= 0.5
    assert asyncio.run(waited(core, 0))[0] == [1, 2]


def test_readers_are_answered_when_the_program_ends(core):
    core.conf.set_override("poll_interval", 30, group="events")

    async def story():
        thread = later(core, watch.end)
        found = await waited(core, 20)
        thread.join()
        return found, await waited(core, 20)

    for found, took in asyncio.run(story()):
        assert found == []
        assert took < 10


def test_a_database_that_is_away_for_a_moment_is_waited_for(core):
    """Those who wait are not answered with an error because the shared look failed."""
    looks = []

    def head():
        looks.append(None)
        if len(looks) == 1:
            raise sqlalchemy.exc.OperationalError("select", {}, Exception("gone"))
        if len(looks) == 2:
            raise errors.DatabaseUnavailableError("gone")
        return len(looks)

    async def story():
        watcher = watch.Watcher(head, 0.02)
        return await watcher.first(lambda: len(looks), lambda count: count > 4, 10)

    assert asyncio.run(story()) > 4


def test_a_watcher_outlives_its_loop_without_harm(core):
    async def make():
        return watch.Watcher(lambda: 1, 1.0)

    watcher = asyncio.run(make())
    watcher.nudge()
    watcher.end()


# -- tasks ----------------------------------------------------------------------------------------


def test_hosts_are_asked_to_connect(core, three):
    uid = volumes.create(core, T, volume())
    request = ConnectRequest(host_id="host-1", vol_id=uid)
    with pytest.raises(errors.NotExistsError, match="probe the host first"):
        tasks.ask_host(core, T, "ConnectVolume", request)
    published(core, uid)
    made = tasks.ask_host(core, T, "ConnectVolume", request)
    assert tasks.ask_host(core, T, "ConnectVolume", request) == made
    assert tasks.ask_host(core, T, "DisconnectVolume", request) != made
    update = TaskUpdate.model_validate(
        {
            "taskId": made,
            "hostId": "host-1",
            "state": "FINISHED",
            "progress": "N/A",
            "taskStatus": "Success",
            "statusDescription": "N/A",
            "taskConfiguration": [{"name": "path", "value": "/dev/md/x"}, {"name": "volId"}],
        }
    )
    migration.update_task(core, update)
    (shown,) = tasks.list_all(core, T, task_id=made)
    assert (shown.state, shown.task_status) == ("FINISHED", "Success")
    tags = {tag.name: tag.value for tag in shown.task_configuration}
    assert (tags["path"], tags["volId"]) == ("/dev/md/x", uid)
    assert len(tasks.list_all(core, None, host_id="host-1\n")) == 2
    for call in (
        lambda: tasks.list_all(core, "7", task_id=made),
        lambda: tasks.list_all(core, None, task_id="none"),
        lambda: tasks.delete(core, made, "host-2"),
        lambda: tasks.delete(core, made, None, "7"),
        lambda: migration.update_task(core, update, "7"),
        lambda: migration.update_task(core, TaskUpdate(task_id=STRANGE)),
        lambda: migration.update_task(core, update.model_copy(update={"host_id": "host-2"})),
    ):
        with pytest.raises(errors.NotExistsError):
            call()
    tasks.delete(core, made, "host-1")
    assert len(tasks.list_all(core, T)) == 1


def test_tasks_of_the_provisioner_are_told_by_nobody_else_and_old_ones_forgotten(core):
    with core.db.write() as session:
        row = tasks.add(session, "OfflineMigration", state="RUNNING")
    with pytest.raises(errors.ConflictError, match="not done by a host"):
        migration.update_task(core, TaskUpdate(task_id=row.uuid, state="FINISHED"))
    with pytest.raises(errors.InUseError):
        tasks.delete(core, row.uuid)
    with core.db.write() as session:
        ended = session.get_one(models.Task, row.uuid)
        tasks.finish(session, ended)
        ended.updated -= 8 * tasks.DAY_MS
    assert tasks.forget(core) == 1
    assert tasks.forget(core) == 0
    assert rows(core, models.Task) == []


# -- the wire -------------------------------------------------------------------------------------


def test_the_calls_of_existing_clients(web, core):
    web.post("/host_probe", json=HOST.wire())
    uid = web.post("/volumes", json=volume(replicas=2).wire()).json()["uuid"]
    web.post("/publish", json={"hostId": "host-1", "volId": uid})
    legs = [one["uuid"] for one in web.get(f"/volumes/{uid}").json()[0]["location"]]
    for path, verb in (
        (f"/replica/{uid}/{legs[0]}/Missing", web.patch),
        (f"/0/replica/{uid}/{legs[1]}/Available", web.patch),
        (f"/replica/{uid}/{legs[0]}", web.patch),
        (f"/replica/{uid}/{legs[0]}", web.delete),
    ):
        answer = verb(path)
        assert answer.json()["status"] == "Success", answer.text
    answer = web.delete(f"/replica/{uid}/{legs[0]}")
    assert (answer.status_code, answer.json()["status"]) == (404, "NotExists")
    body = {"sameRackAllowed": False, "racks": [], "regions": [], "zones": []}
    assert web.post(f"/replica/{uid}", json=body).json()["status"] == "Success"
    report = {"hostId": "host-1", "volId": uid, "state": "open", "legs": []}
    report["legs"] = [{"replica": STRANGE, "state": "Available"}]
    answer = web.post("/array_report", json=report).json()
    assert (answer["status"], STRANGE in answer["description"]) == ("Success", True)
    assert web.post("/migrate_volume", json={"volId": uid}).json()["status"] == "InvalidInput"
    made = web.post("/connect", json={"hostId": "host-1", "volId": uid}).json()["taskId"]
    assert web.post("/disconnect", json={"hostId": "host-1", "volId": uid}).json()["taskId"]
    assert len(web.get("/tasks", params={"hostId": "host-1"}).json()) == 2
    told = {"taskId": made, "state": "FINISHED", "progress": 100}
    assert web.put("/tasks", json=told).json()["status"] == "Success"
    assert web.delete("/tasks", params={"taskId": made}).json()["status"] == "Success"
    log = {"message": "x", "parametersList": {"a": 1}}
    assert web.post("/forward_log", json=log).json()["status"] == "Success"
    page = web.get("/events", params={"limit": 1000, "wait": 1}).json()
    kinds = {one["type"] for one in page["events"]}
    assert {"host.added", "replica.state", "replica.added", "log.forwarded"} <= kinds
    assert web.get("/events", params={"since": page["last"]}).json()["events"] == []
    assert web.get("/events", params={"wait": 51}).json()["status"] == "InvalidInput"


def test_a_drain_over_the_wire(web, core, three):
    web.post("/volumes", json=volume().wire())
    node = next(one for one in three if one.state.replicas).persistent_id
    made = web.post(f"/backends/{node}/drain").json()["taskId"]
    assert web.get("/tasks", params={"taskId": made}).json()[0]["type"] == "Drain"
    assert web.get(f"/backends/{node}").json()[0]["state"] == "Draining"
    assert web.delete(f"/backends/{node}/drain").json()["status"] == "Success"


def test_calls_that_have_little_to_do(web, core):
    assert web.get("/syslog").json() == []
    assert web.get("/license").json()["maxBackends"] == 0
    answer = web.post("/license", json={"license": "key"}).json()
    assert (answer["status"], "not kept" in answer["description"]) == ("Success", True)
    assert web.get("/inventory").json()["backends"] == 3
    core.wake.clear()
    assert web.delete("/reset_inventory").json()["status"] == "Success"
    assert core.wake.is_set()


def test_hosts_probe_with_abilities(web):
    probe = HostProbe(host_nqn=HOST.host_nqn, host_id="h", abilities=["freshness"])
    web.post("/host_probe", json=probe.wire())
    (shown,) = web.get("/hosts").json()
    assert (shown["abilities"], shown["volumes"]) == (["freshness"], 0)
