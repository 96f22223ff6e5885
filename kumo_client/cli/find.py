# SPDX-License-Identifier: Apache-2.0
"""Objects by what people call them: id, name or alias."""

from __future__ import annotations

import uuid
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.backend import Backend
from kumo_client.schemas.host import Host
from kumo_client.schemas.snapshot import Snapshot
from kumo_client.schemas.volume import Location, Volume


def is_uuid(text: str) -> bool:
    """Whether a text on the command line is a UUID rather than a name."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def single(found: list[Any], what: str) -> Any:
    """The only element.

    :raises NotExistsError: there is none.
    :raises ConflictError: there are several.
    """
    if not found:
        raise errors.NotExistsError(f"{what} does not exist")
    if len(found) > 1:
        raise errors.ConflictError(f"there are {len(found)} of {what}", way_out="give the uuid")
    return found[0]


def backend(provisioner: Provisioner, text: str) -> Backend:
    """The storage node of a persistent id or, if there is none, of a name."""
    backends = provisioner.backends()
    exact = [item for item in backends if item.persistent_id == text]
    found = exact or [item for item in backends if item.name == text]
    chosen: Backend = single(found, f"backend {text}")
    return chosen


def volume(provisioner: Provisioner, text: str) -> Volume:
    """The volume of a uuid or alias."""
    return (provisioner.volume if is_uuid(text) else provisioner.volume_by_alias)(text)


def snapshot(provisioner: Provisioner, text: str) -> Snapshot:
    """The snapshot of a uuid or alias."""
    return (provisioner.snapshot if is_uuid(text) else provisioner.snapshot_by_alias)(text)


def host(provisioner: Provisioner, text: str) -> Host:
    """The host of a uuid or, if there is none, of a name."""
    hosts = provisioner.hosts()
    exact = [item for item in hosts if item.uuid.lower() == text.lower()]
    chosen: Host = single(exact or [item for item in hosts if item.name == text], f"host {text}")
    return chosen


def replica(of: Volume, text: str) -> Location:
    """The replica of a uuid, or the one on the node of this name or persistent id."""
    exact = [item for item in of.location if item.uuid.lower() == text.lower()]
    on_node = [
        item for item in of.location if text in (item.backend.persistent_id, item.backend.name)
    ]
    chosen: Location = single(exact or on_node, f"replica {text} of volume {of.alias}")
    return chosen
