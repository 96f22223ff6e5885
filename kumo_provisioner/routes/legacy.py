# SPDX-License-Identifier: Apache-2.0
"""Calls of KumoScale that have little to do here: logging servers, licence and inventory."""

from typing import Any

from pydantic import Field
from sqlalchemy import func, select

from kumo_client.schemas.common import StatusAnswer, Text, WireModel
from kumo_provisioner.db import models
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, dump, router

routes = router("legacy")


class License(WireModel):
    """GET /license. ``max_backends`` 0: no limit."""

    type: str = "Apache-2.0"
    expiration_date: str = Field("", alias="expirationDate")
    max_backends: int = Field(0, alias="maxBackends")


class LicenseKey(WireModel):
    """POST /license."""

    license: Text = Field("", max_length=65536)


class Syslog(WireModel):
    """GET /syslog."""

    name: str
    url: str = ""
    state: str = ""
    use_tls: bool = Field(False, alias="useTls")
    cert_file_name: str = Field("", alias="certFileName")


class Inventory(WireModel):
    """GET /inventory: how much there is."""

    backends: int = 0
    volumes: int = 0
    snapshots: int = 0
    hosts: int = 0


@routes.get("/syslog", response_model=list[Syslog])
def list_syslog() -> Any:
    """Logging servers: none, because the log goes to the journal of the machine."""
    return []


@routes.get("/license", response_model=License)
def show_license() -> Any:
    """The licence of this software; nothing depends on a key."""
    return dump([License()])[0]


@routes.post("/license", response_model=StatusAnswer)
def set_license(body: LicenseKey) -> Any:
    """Accepted and ignored."""
    answer = success()
    answer["description"] = "no licence key is needed; the one given is not kept"
    return answer


@routes.get("/inventory", response_model=Inventory)
def show_inventory(core: CoreArg) -> Any:
    """How many objects there are."""
    tables = {
        "backends": models.Backend,
        "volumes": models.Volume,
        "snapshots": models.Snapshot,
        "hosts": models.Host,
    }
    with core.db.read() as session:
        counts = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in tables.items()
        }
    return dump([Inventory(**counts)])[0]


@routes.delete("/reset_inventory", response_model=StatusAnswer)
def reset_inventory(core: CoreArg) -> Any:
    """Look at all nodes again soon."""
    core.wake.set()
    return success()
