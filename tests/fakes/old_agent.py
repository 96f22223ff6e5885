# SPDX-License-Identifier: Apache-2.0
"""An agent of the existing generations, as far as the provisioner can see it.

Its calls and their order are those of the public agents: a round of healing, and the worker for
tasks. What md does is a dict: a leg is in sync, or so many looks away from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import requests

ADD = {"sameRackAllowed": False, "racks": [], "regions": [], "zones": []}


@dataclass
class OldAgent:
    """:ivar array: looks that each leg is away from being in sync; None: failed.
    :ivar minute: milliseconds that count as a minute.
    :ivar premature: report Available as soon as a device appears, as the first generation does.
    """

    url: str
    token: str
    ca_file: str
    volume: str
    host_id: str = "old-host"
    minute: int = 60_000
    premature: bool = False
    array: dict[str, int | None] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def call(self, verb: str, path: str, body: Any = None, **params: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        if verb != "GET":
            headers["Content-Type"] = "application/json"
        answer = requests.request(
            verb,
            self.url + path,
            headers=headers,
            json=body,
            params=params,
            verify=self.ca_file,
            timeout=(5, 60),
        )
        self.calls.append(f"{verb} {path.split('/')[1]}")
        found = answer.json()
        assert isinstance(found, list) or "description" in found
        return found

    def ok(self, verb: str, path: str, body: Any = None, **params: str) -> Any:
        found = self.call(verb, path, body, **params)
        good = ("Success", "AlreadyPublished")
        assert isinstance(found, list) or found["status"] in good, found
        return found

    def probe(self) -> None:
        body = {
            "hostNqn": "nqn.2014-08.org.nvmexpress:uuid:old-host",
            "hostId": f"{self.host_id}\n",
            "name": "old",
            "clientType": "Openstack",
            "version": "3.22.170",
            "duration": 30,
            "multipath": False,
        }
        self.ok("POST", "/host_probe", body)

    def attach(self) -> None:
        """As the driver and the connector do."""
        self.probe()
        self.publish()
        self.array = dict.fromkeys(self.legs(), 0)

    def publish(self) -> None:
        self.ok("POST", "/publish", {"hostId": self.host_id, "volId": self.volume})

    def shown(self) -> Any:
        (found,) = self.ok("GET", f"/volumes/{self.volume}")
        return found

    def legs(self) -> dict[str, Any]:
        return {one["uuid"]: one for one in self.shown()["location"]}

    def patch(self, *parts: str) -> Any:
        return self.call("PATCH", "/".join(("/replica", self.volume, *parts)))

    def tick(self) -> None:
        """md gets on with what it synchronises."""
        for leg, left in self.array.items():
            self.array[leg] = max(0, left - 1) if left is not None else None

    def state(self, leg: str) -> str:
        left = self.array.get(leg)
        if left is None:
            return "Missing"
        return "Synchronizing" if left else "Available"

    def round(self) -> str:
        """One round; says what it did."""
        self.probe()
        legs = self.legs()
        for leg, place in legs.items():
            if place["replicaState"] not in (self.state(leg), "Terminating"):
                self.patch(leg, self.state(leg))
        going = [leg for leg, place in legs.items() if place["replicaState"] == "Terminating"]
        if len(going) == 1:
            self.array.pop(going[0], None)
            self.ok("DELETE", f"/replica/{self.volume}/{going[0]}")
            return "removed"
        if self.add_legs(legs):
            return "added"
        return self.heal()

    def add_legs(self, legs: dict[str, Any]) -> bool:
        done = False
        for leg, place in legs.items():
            known = place["backend"]["persistentID"]
            if self.array.get(leg) is not None or place["replicaState"] == "Terminating":
                continue
            (backend,) = self.ok("GET", f"/backends/{known}")
            if backend["state"] != "Available" or self.unreachable(leg):
                continue
            self.publish()
            if self.premature:
                self.patch(leg, "Available")
            self.array[leg] = 3
            self.patch(leg, "Synchronizing")
            done = True
        return done

    broken: set[str] = field(default_factory=set)

    def unreachable(self, leg: str) -> bool:
        return leg in self.broken

    def heal(self) -> str:
        volume = self.shown()
        limit = volume["maxReplicaDownTime"]
        if limit == 0 or volume["numReplicas"] == 4:
            return "nothing"
        for place in volume["location"]:
            minutes = place["currentStateTime"] // self.minute
            lost = place["replicaState"] == "Missing" and self.array.get(place["uuid"]) is None
            if not lost or minutes < limit:
                continue
            if self.call("POST", f"/replica/{self.volume}", ADD)["status"] != "Success":
                return "refused"
            self.add_legs(self.legs())
            self.patch(place["uuid"])
            return "replaced"
        return "nothing"

    # -- the worker for tasks ---------------------------------------------------------------------

    def put(self, task: dict[str, Any], state: str, progress: Any, status: str = "N/A") -> None:
        told = {**task, "state": state, "progress": progress, "taskStatus": status}
        told["taskConfiguration"] = [
            *task["taskConfiguration"],
            # The worker puts the wrong replica here.
            {"name": "addedReplicaId", "value": self.tag(task, "replicaId")},
        ]
        self.ok("PUT", "/tasks", told)

    @staticmethod
    def tag(task: dict[str, Any], name: str) -> str:
        return next(tag["value"] for tag in task["taskConfiguration"] if tag["name"] == name)

    def work(self) -> bool:
        """Carry out the first migration that waits."""
        tasks = self.ok("GET", "/tasks", hostId=self.host_id)
        waiting = [one for one in tasks if one["type"] == "RemoteMigration"]
        waiting = [one for one in waiting if one["state"] == "IDLE"]
        if not waiting:
            return False
        task = waiting[0]
        old = self.tag(task, "replicaId")
        before = set(self.legs())
        self.ok("POST", f"/replica/{self.volume}", ADD)
        (new,) = set(self.legs()) - before
        self.publish()
        self.array[new] = 3
        self.put(task, "RUNNING", 0)
        while self.array[new]:
            self.tick()
            self.put(task, "RUNNING", 100 - 33.3 * (self.array[new] or 0))
        assert self.patch(new, "Available")["status"] == "Success"
        assert self.patch(new, "Available")["status"] == "Success"
        assert self.patch(old)["status"] == "Success"
        self.array.pop(old)
        self.ok("DELETE", f"/replica/{self.volume}/{old}")
        self.put(task, "FINISHED", 100, "Success")
        return True
