# SPDX-License-Identifier: Apache-2.0
"""A provisioner whose database is an old copy: what differs, and what an operator decides.

* ``GET /restored`` -> :class:`Restored`
* ``POST /restored/accept`` :class:`Accept` -> :class:`Accepted`
"""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import StatusAnswer, WireModel

KEEP, DROP = "keep", "drop"

# What acceptance leads to.
UNEXPORT = "unexport"
EXPORT = "export"
REMOVE = "remove"
UNKNOWN = "unknown"
MISSING = "missing"
FOUND = "found"
CAP = "cap"
UNDO = "undo"
FINISH = "finish"


class Difference(WireModel):
    """One thing that nodes and record do not agree on.

    ``action`` is what follows when the database is accepted: ``unexport`` takes a volume away from
    a host (unless exports are kept), ``export`` gives it to one, ``remove`` deletes an object,
    ``unknown`` lists it as garbage, ``missing`` and ``found`` note that a replica is not on its
    node or is there again, ``cap`` sets its caps, ``undo`` takes back a volume, snapshot or
    publication that was being made when the copy was (with exports kept, volumes and publications
    stay), ``finish`` goes on with a change that was
    under way then. ``kind`` is ``replica``, ``snapshot``, ``volume`` or ``publication``.
    """

    action: str
    kind: str
    uuid: str
    backend_id: str = Field("", alias="persistentID")
    volume_id: str = Field("", alias="volumeId")
    alias: str = ""
    host_nqn: str = Field("", alias="hostNqn")
    host_id: str = Field("", alias="hostId")
    bytes: int = 0
    detail: str = ""


class Sight(WireModel):
    """What a node remembers. ``judgement``: ``fine``, ``behind`` (it only has to be told),
    ``older`` (our database is an old copy), ``left`` (it has changed since a copy that was accepted
    while it was away), ``other`` (it follows another database), or ``silent``."""

    backend_id: str = Field(alias="persistentID")
    name: str = ""
    judgement: str
    stamp: str = ""
    reason: str = ""


class Uncertain(WireModel):
    """A replicated volume that the copy has as never written to."""

    volume_id: str = Field(alias="volumeId")
    alias: str


class Restored(WireModel):
    """``doubt`` is empty when nothing is wrong; ``since`` in ms since the epoch, 0 for never.

    ``stamp`` is that of the database.
    """

    doubt: str = ""
    reason: str = ""
    since: int = 0
    stamp: str = ""
    backends: list[Sight] = []
    differences: list[Difference] = []
    uncertain: list[Uncertain] = []


class Accept(WireModel):
    """``exports``: ``keep`` takes those that only nodes know into the record, and keeps volumes and
    publications that were being made when the copy was; ``drop`` has the ones taken away from their
    hosts, and the others undone."""

    exports: str = Field(pattern="^(keep|drop)$")


class Accepted(StatusAnswer):
    """``exports_kept`` were taken into the record. ``arrays`` is how many volumes are recorded as
    perhaps written to. ``left`` are ids of nodes that could not be told; they are looked at anew
    when they are back."""

    exports_kept: int = Field(0, alias="exportsKept")
    arrays: int = 0
    left: list[str] = []
