# SPDX-License-Identifier: Apache-2.0
"""The node's own record: what it holds and what it has begun.

One JSON file, replaced as a whole: written beside, flushed, renamed, directory flushed. A verb
writes its intent here before it touches LVM or the kernel and the outcome afterwards; what a crash
leaves half-made is found by its state and finished or undone by :mod:`kumo_node.restore`.

States of a record:

``creating``  nothing was answered yet; what exists of it may be undone.
``ready``     answered as done; never given up by itself.
``deleting``  the call has begun; what remains is removed.
``adopting``  nothing was answered yet; the volume gets its old name back and is never removed.
``releasing`` the call has begun; the volume gets its new name and is forgotten.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import pathlib
import threading
import uuid
from collections.abc import Iterator

import pydantic
from pydantic import BaseModel, ConfigDict

from kumo_client import errors

FORMAT = 1
FILE = "spec.json"
CREATING, READY, DELETING = "creating", "ready", "deleting"
ADOPTING, RELEASING = "adopting", "releasing"
COPY_RUNNING, COPY_DONE, COPY_FAILED = "running", "done", "failed"
# One pool on each disk, or one pool over all disks.
LAYOUT_DISK, LAYOUT_GROUP = "disk", "group"
# How a volume is erased before it is removed.
ERASE_DISCARD, ERASE_ZERO = "discard", "zero"


class Record(BaseModel):
    """Base of the records: never changed in place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str = CREATING


class RevertRecord(BaseModel):
    """A revert that has begun; ``token`` is that of the volume made from the snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    snapshot: str
    token: str
    array_uuid: str | None = None
    array_name: str | None = None


class ReplicaRecord(Record):
    """A replica. ``bytes``: size reached. ``target_bytes``: size of a resize that has begun.

    ``token`` is part of a tag on the logical volume made for this record. A volume without it is
    not ours, whatever its name. ``max_iops`` and ``max_bw`` (KB/s) are caps, 0 is none.

    ``reverted`` is the operation of the last revert that was done. ``other_name`` is the name that
    an adopted volume had, and that a released one gets. ``erase``: how it is still to be erased
    before it is removed, "" for not at all.
    """

    volume_id: str
    bytes: int
    pool: str
    token: str
    target_bytes: int | None = None
    source_snapshot: str | None = None
    source_replica: str | None = None
    array_uuid: str | None = None
    array_name: str | None = None
    max_iops: int = 0
    max_bw: int = 0
    revert: RevertRecord | None = None
    reverted: str | None = None
    other_name: str | None = None
    erase: str = ""


class SnapshotRecord(Record):
    """A snapshot of ``replica``; ``snapshot_id`` is the provisioner's name for the whole."""

    replica: str
    snapshot_id: str
    bytes: int
    pool: str
    token: str
    erase: str = ""


class ExportRecord(Record):
    """A namespace in the subsystem of (host, class)."""

    replica: str
    host_nqn: str
    io_class: str
    nsid: int


class PortalRecord(BaseModel):
    """An address of another node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ip: str
    port: int
    transport: str


class CopyRecord(Record):
    """A copy from a replica of another node; its key is the replica that is filled.

    ``offset``: what lies before it is durable. ``reason``: why it has failed.
    """

    state: str = COPY_RUNNING
    source_replica: str
    subsystem_nqn: str
    host_nqn: str
    portals: tuple[PortalRecord, ...] = ()
    bytes: int
    offset: int = 0
    reason: str = ""


class DiskRecord(BaseModel):
    """A disk taken into the volume group. ``ready`` is False while that is under way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serial: str = ""
    ready: bool = False


class PoolRecord(BaseModel):
    """A pool on one disk: its volume group, and the disk. ``bytes``: its size when last seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vg: str
    path: str
    serial: str = ""
    bytes: int = 0


class MeasuredRecord(BaseModel):
    """What a pool was measured to deliver: operations and KB per second; ``at``: Unix time.

    ``how``: ``scratch`` or ``read-only``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iops: int
    bw: int
    how: str = ""
    at: int = 0


class StampRecord(BaseModel):
    """The latest state of the provisioner's database that this node was told of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str
    branch: str
    number: int


class Data(BaseModel):
    """The whole file. ``hosts``: host NQNs whose directory in nvmet was made by this node.

    ``layout`` is ``disk`` or ``group``, and "" until the first disk is taken. ``pools`` are those
    of the layout ``disk``, by name. ``stamp``: see :mod:`kumo_client.stamp`.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    generation: int = 0
    persistent_id: str
    layout: str = ""
    disks: dict[str, DiskRecord] = {}
    pools: dict[str, PoolRecord] = {}
    replicas: dict[str, ReplicaRecord] = {}
    snapshots: dict[str, SnapshotRecord] = {}
    exports: dict[str, ExportRecord] = {}
    copies: dict[str, CopyRecord] = {}
    measured: dict[str, MeasuredRecord] = {}
    hosts: list[str] = []
    stamp: StampRecord | None = None

    def exports_of(self, replica: str) -> list[ExportRecord]:
        return [export for export in self.exports.values() if export.replica == replica]

    def branch(self) -> Data:
        """A copy that can be changed without changing this one; the records are shared."""
        new = copy.copy(self)
        for name in _BRANCHED:
            setattr(new, name, copy.copy(getattr(self, name)))
        return new


_BRANCHED = tuple(
    name
    for name in Data.model_fields
    if name not in ("format", "generation", "persistent_id", "layout", "stamp")
)


def export_key(replica: str, host_nqn: str) -> str:
    return f"{replica} {host_nqn}"


def new_token() -> str:
    return uuid.uuid4().hex


class Spec:
    """The record on disk and in memory; one process at a time may have it open.

    :param directory: it is made when missing.
    :raises ConfigError: when the file is unreadable, of a later format, or open elsewhere. A spec
        is never started anew over one that cannot be read: the volumes would be orphans.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(directory) / FILE
        self._mutex = threading.Lock()
        self.closed = False
        self._lock_file = self._claim()
        try:
            self._data = self._load()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> int:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(
                self.path.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise errors.ConfigError(f"Option state_dir: {error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise errors.ConfigError(
                f"Option state_dir: {self.path.parent} is in use by another kumo-node",
                way_out="Stop the other process first",
            ) from error
        return handle

    def _load(self) -> Data:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            data = Data(persistent_id=str(uuid.uuid4()))
            self._write(data)
            return data
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"{self.path} cannot be read: {error}") from error
        try:
            data = Data.model_validate_json(text)
            if data.format != FORMAT:
                raise ValueError(f"format {data.format} is not {FORMAT}")
        except (pydantic.ValidationError, ValueError) as error:
            raise errors.ConfigError(
                f"{self.path} is damaged or of another version: {error}",
                way_out="Restore it from the backup; do not delete it, it is the only record of "
                "what this node exports",
            ) from error
        return data

    def close(self) -> None:
        """Let another process open it."""
        os.close(self._lock_file)
        self.closed = True

    @property
    def data(self) -> Data:
        """What is recorded now. Never change it; see :meth:`edit`."""
        return self._data

    @contextlib.contextmanager
    def edit(self, *, counts: bool = True) -> Iterator[Data]:
        """A copy to change; it is on disk when the block has ended without an exception.

        :param counts: False when nothing that an inventory tells changes.
        """
        with self._mutex:
            new = self._data.branch()
            yield new
            new.generation += counts
            self._write(new)
            self._data = new

    def _write(self, data: Data) -> None:
        # An older version refuses a field that it does not know.
        unknown = {"stamp"} if data.stamp is None else None
        text = json.dumps(data.model_dump(mode="json", exclude=unknown), separators=(",", ":"))
        beside = self.path.with_suffix(".new")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", closefd=False) as stream:
                stream.write(text)
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # The rename itself is durable only when the directory is.
            os.fsync(directory)
        finally:
            os.close(directory)
