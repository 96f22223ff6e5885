# SPDX-License-Identifier: Apache-2.0
"""The connection properties of a volume, read once and checked.

Ours carry the key ``kumo`` from our Cinder driver beside what stock os-brick reads (cases 1 and 2
of ``NVMeOFConnProps`` in os_brick/initiator/connectors/nvmeof.py). The same dictionaries without
the key come from the KumoScale driver in Cinder's tree: they can be read as well, and say nothing
of freshness and array state.
"""

from __future__ import annotations

import dataclasses
import uuid as uuidlib
from collections.abc import Mapping, Sequence
from typing import Any

from os_brick_nvmeof import errors

KEY = "kumo"
# The highest version of our part of the properties that we understand.
VERSION = 1

GIB = 1 << 30
PLAIN = "plain"
REPLICATED = "replicated"
# States of an array as the provisioner tells them; "" when it did not.
NEW = "new"
CLEAN = "clean"
OPEN = "open"
ARRAY_STATES = ("", NEW, CLEAN, OPEN)
# What the provisioner's record says of a leg; "" when it did not.
FRESH = "fresh"
STALE = "stale"
BLANK = "blank"
FRESHNESS = ("", FRESH, STALE, BLANK)
# Replica states of the wire; in the last two a leg is not handed out to hosts.
AVAILABLE = "Available"
SYNCHRONIZING = "Synchronizing"
MISSING = "Missing"
TERMINATING = "Terminating"


@dataclasses.dataclass(frozen=True)
class Portal:
    """Where a subsystem can be reached. ``transport``: ``tcp`` or ``rdma``; ``port`` is decimal."""

    address: str
    port: str
    transport: str

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.transport}://{address}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Leg:
    """One replica of a volume: a namespace whose UUID is ``uuid``.

    :ivar nqn: of the subsystem that offers it to this host; "" when it has none now.
    :ivar node: name or id of its storage node, for messages; may be "".
    :ivar state: replica state of the wire ("Available", "Missing", ...); "" when unknown.
    :ivar freshness: one of :data:`FRESHNESS`.
    :ivar events: md event counter last reported for it; 0 when never.
    """

    uuid: str
    nqn: str
    portals: tuple[Portal, ...]
    node: str = ""
    state: str = ""
    freshness: str = ""
    events: int = 0

    def __str__(self) -> str:
        return f"leg {self.uuid} on node {self.node or 'unknown'}"


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume as it is to be attached.

    :ivar uuid: of the volume; that of the md array too.
    :ivar alias: name of the md array under /dev/md (replicated volumes).
    :ivar io_class: ``plain`` or ``replicated``: which time-outs its connections get.
    :ivar size: bytes that its user asked for; 0 when unknown.
    :ivar legs: all that are known, those that are not handed out included.
    :ivar replicated: it is an md array, even when one leg is left.
    :ivar array_state: one of :data:`ARRAY_STATES`.
    :ivar shared: another host has it attached, so nothing may be written by assembling.
    :ivar accept_stale: an operator overrides the freshness check for this volume.
    :ivar device_path: where the device was when it was attached, as Nova tells; may be "".
    :ivar told: the properties carry our key.
    :ivar tenant: of the volume, and :ivar publication: number of the publication that this attach
        belongs to, both for the last word about its array; 0 when the provisioner takes none.
    """

    uuid: str
    alias: str
    io_class: str
    size: int
    legs: tuple[Leg, ...]
    replicated: bool
    array_state: str = ""
    shared: bool = False
    read_only: bool = False
    accept_stale: bool = False
    enforce_multipath: bool = False
    host_nqn: str = ""
    device_path: str = ""
    told: bool = False
    tenant: str = ""
    publication: int = 0

    def __str__(self) -> str:
        return f"volume {self.uuid}"


def is_ours(properties: Mapping[str, Any]) -> bool:
    """Whether the properties carry our key."""
    return isinstance(properties.get(KEY), Mapping)


def is_kumoscale(properties: Mapping[str, Any]) -> bool:
    """Whether they have the plain format of the KumoScale driver."""
    return "volume_replicas" in properties and "replica_count" in properties


def parse(properties: Mapping[str, Any]) -> Volume:
    """Read connection properties; they are not changed.

    :raises BadPropertiesError: naming the key that is missing or makes no sense.
    """
    ours = properties.get(KEY) or {}
    if not isinstance(ours, Mapping):
        raise errors.BadPropertiesError(f"{KEY} is not an object")
    version = ours.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise errors.BadPropertiesError(
            f"{KEY}.version is {version!r}, and this host understands up to {VERSION}",
            way_out="upgrade cinder-kumo on this host",
        )
    volume_id = _uuid(properties.get("vol_uuid"), "vol_uuid")
    legs = _legs(properties, ours, volume_id)
    count = int(properties.get("replica_count") or len(legs))
    # One leg may be left of an array.
    replicated = count > 1 or ours.get("class") == REPLICATED or bool(ours.get("array_state"))
    alias = str(properties.get("alias") or "")
    if replicated and (not alias or "/" in alias or len(alias.encode()) > 32):
        raise errors.BadPropertiesError(f"alias {alias!r} cannot name an array", volume=volume_id)
    return Volume(
        uuid=volume_id,
        alias=alias,
        io_class=REPLICATED if replicated else PLAIN,
        size=int(ours.get("capacity") or 0) * GIB,
        legs=legs,
        replicated=replicated,
        array_state=_one_of(ours.get("array_state"), ARRAY_STATES, "array_state", volume_id),
        shared=bool(ours.get("shared")),
        read_only=properties.get("access_mode") == "ro",
        accept_stale=bool(ours.get("accept_stale")),
        enforce_multipath=bool(properties.get("enforce_multipath")),
        host_nqn=str(ours.get("host_nqn") or properties.get("host_nqn") or ""),
        device_path=str(properties.get("device_path") or ""),
        told=bool(ours),
        tenant=str(ours.get("tenant") or ""),
        publication=int(ours.get("publication") or 0),
    )


def _legs(
    properties: Mapping[str, Any], ours: Mapping[str, Any], volume_id: str
) -> tuple[Leg, ...]:
    """Our list where there is one: it has every leg; stock's has those that are handed out."""
    handed_out = {
        _uuid(item.get("vol_uuid"), "volume_replicas.vol_uuid", volume_id): item
        for item in _list(properties, "volume_replicas", volume_id)
    }
    told = {
        _uuid(item.get("uuid"), f"{KEY}.replicas.uuid", volume_id): item
        for item in _list(ours, "replicas", volume_id)
    }
    legs = [
        _leg(uuid, handed_out.get(uuid, {}), told.get(uuid, {}), volume_id)
        for uuid in dict.fromkeys((*told, *handed_out))
    ]
    if not legs:
        raise errors.BadPropertiesError("volume_replicas is empty", volume=volume_id)
    return tuple(legs)


def _leg(uuid: str, stock: Mapping[str, Any], told: Mapping[str, Any], volume_id: str) -> Leg:
    return Leg(
        uuid=uuid,
        nqn=str(stock.get("target_nqn") or told.get("target_nqn") or ""),
        portals=tuple(
            _portal(item, volume_id) for item in stock.get("portals") or told.get("portals") or ()
        ),
        node=str(told.get("node") or told.get("backend") or ""),
        state=str(told.get("state") or ""),
        freshness=_one_of(told.get("freshness"), FRESHNESS, "freshness", volume_id),
        events=int(told.get("events") or 0),
    )


def _portal(item: Any, volume_id: str) -> Portal:
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 3:
        raise errors.BadPropertiesError(
            f"portal {item!r} is not (address, port, transport)", volume=volume_id
        )
    address, port, transport = (str(part) for part in item)
    # As stock os-brick reads transports (Portal in nvmeof.py).
    kind = "rdma" if transport in ("RoCEv2", "rdma", "RDMA") else "tcp"
    return Portal(address.strip("[]"), port, kind)


def _list(of: Mapping[str, Any], key: str, volume_id: str) -> Sequence[Mapping[str, Any]]:
    items = of.get(key) or ()
    if not isinstance(items, Sequence) or not all(isinstance(item, Mapping) for item in items):
        raise errors.BadPropertiesError(f"{key} is not a list of objects", volume=volume_id)
    return items


def _uuid(value: Any, key: str, volume_id: str = "") -> str:
    try:
        return str(uuidlib.UUID(str(value)))
    except ValueError:
        raise errors.BadPropertiesError(f"{key} {value!r} is no UUID", volume=volume_id) from None


def _one_of(value: Any, known: Sequence[str], key: str, volume_id: str) -> str:
    text = str(value or "")
    if text not in known:
        raise errors.BadPropertiesError(f"{KEY}.{key} is {text!r}", volume=volume_id)
    return text
