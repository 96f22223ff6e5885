# SPDX-License-Identifier: Apache-2.0
"""Events: what happened, for hosts, tools and people.

An event is written in the transaction of what it tells, and numbered after that has committed:
transactions commit in another order than they begin, and a reader that has seen a number must
have seen all smaller ones. Numbers are given under the lock of one row of ``counters``, by whoever
reads events next or by the duty.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

from oslo_log import log
from sqlalchemy import ColumnElement, Table, delete, func, or_, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import event as wire
from kumo_client.schemas.event import FATAL, INFO, WARN
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import watch

LOG = log.getLogger(__name__)
_LEVELS = {INFO: log.INFO, WARN: log.WARNING, FATAL: log.ERROR}
_RANK = {INFO: 0, WARN: 1, FATAL: 2}
NUMBER, FORGOTTEN = "events", "events.forgotten"
AT_ONCE = 1000
DAY_MS = 86_400_000
MAX_WAIT = 50.0
MAX_DETAILS = 8192
# Nobody needs the id that it gets.
_INSERT = cast(Table, models.Event.__table__).insert().inline()


def record(
    session: Session,
    what: str,
    message: str,
    *,
    level: str = INFO,
    tenant: str = "0",
    volume: str = "",
    replica: str = "",
    backend: str = "",
    host: str = "",
    **details: Any,
) -> None:
    """Write an event down in the transaction of the caller, and log it.

    :param what: ``<object>.<what>``, for example ``replica.state``.
    :param details: JSON values.
    """
    values = {
        "time": now_ms(),
        "type": what,
        "level": level,
        "tenant_id": tenant,
        "volume_id": volume,
        "replica_id": replica,
        "backend_id": backend,
        "host_id": host,
        "message": plain(message),
        "details": plain(details),
    }
    session.connection().execute(_INSERT, values)
    watch.on_commit(session)
    about = volume or replica or backend or host
    LOG.log(_LEVELS.get(level, log.INFO), "%s %s: %s", what, about, message)


def plain(value: Any) -> Any:
    """Without the texts that existing clients take for an error in any body, and without what
    cannot be printed."""
    if isinstance(value, str):
        for text in errors.RESERVED_TEXTS:
            value = value.replace(text, text.replace(" ", "-"))
        if value.isprintable():
            return value
        return "".join(char if char.isprintable() else " " for char in value)
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def forward(core: Core, request: wire.ForwardLog) -> None:
    """Keep a record that the agent of a host sent, and log it."""
    level = request.level.upper()
    details: dict[str, Any] = request.parameters_list
    text = json.dumps(details)
    if len(text) > MAX_DETAILS:
        details = {"text": text[:MAX_DETAILS]}
    app = request.app_name or "agent"
    with core.db.write() as session:
        record(
            session,
            "log.forwarded",
            f"{app} on {request.host or 'an unnamed host'}: {request.message}",
            level=level if level in _RANK else INFO,
            host=request.host,
            parameters=details,
        )


# -- numbers ------------------------------------------------------------------------------------


def _counter(session: Session, name: str) -> models.Counter:
    """The row of a counter, locked until the transaction ends."""
    query = select(models.Counter).filter_by(name=name).with_for_update()
    row = session.scalar(query)
    if row is None:
        row = models.Counter(name=name, value=0)
        session.add(row)
        session.flush()
    return row


def number(core: Core) -> int:
    """Give numbers to events that have been committed; gives the last number.

    :returns: 0 when there has been no event yet.
    """
    with core.db.read() as session:
        if session.scalar(select(models.Event.id).filter_by(seq=0).limit(1)) is None:
            return _value(session, NUMBER)
    while True:
        last, count = core.db.run(_number_some)
        if count < AT_ONCE:
            return last


def _number_some(session: Session) -> tuple[int, int]:
    counter = _counter(session, NUMBER)
    query = select(models.Event).filter_by(seq=0).order_by(models.Event.id).limit(AT_ONCE)
    rows = session.scalars(query).all()
    for row in rows:
        counter.value += 1
        row.seq = counter.value
    return counter.value, len(rows)


def _value(session: Session, name: str) -> int:
    return session.scalar(select(models.Counter.value).filter_by(name=name)) or 0


# -- reading ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a reader wants.

    :ivar since: the last number it knows.
    :ivar host_id: events of this host, of the volumes that are published to it, and those that are
        about the fleet as a whole.
    :ivar level: this level and those above.
    :ivar tenant: only events of this tenant; None for all.
    """

    since: int = 0
    limit: int = 100
    host_id: str = ""
    volume_id: str = ""
    level: str = INFO
    tenant: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.host_id:
            volumes = select(models.Publication.volume_id).filter_by(host_id=self.host_id)
            fleet = (models.Event.host_id == "") & (models.Event.volume_id == "")
            mine = models.Event.host_id == self.host_id
            found.append(or_(mine, fleet, models.Event.volume_id.in_(volumes)))
        if self.volume_id:
            found.append(models.Event.volume_id == self.volume_id)
        if self.tenant is not None:
            found.append(models.Event.tenant_id == self.tenant)
        levels = [level for level in _RANK if _RANK[level] >= _RANK[self.level]]
        found.append(models.Event.level.in_(levels))
        return found


def page(core: Core, ask: Ask) -> wire.EventPage:
    """The next events that a reader wants; none is an empty list.

    :raises InvalidInputError: when the level is none.
    """
    if ask.level not in _RANK:
        raise errors.InvalidInputError(f"level must be one of {', '.join(_RANK)}")
    head = number(core)
    with core.db.read() as session:
        forgotten = _value(session, FORGOTTEN)
        query = (
            select(models.Event)
            .where(models.Event.seq > ask.since, models.Event.seq <= head, *ask.conditions())
            .order_by(models.Event.seq)
            .limit(ask.limit)
        )
        rows = session.scalars(query).all()
    full = len(rows) == ask.limit
    return wire.EventPage(
        events=[_event(row) for row in rows],
        last=rows[-1].seq if full else head,
        # A number that was never given: the record is older than what the reader has seen.
        lost=ask.since < forgotten or ask.since > head,
    )


def _event(row: models.Event) -> wire.Event:
    return wire.Event(
        seq=row.seq,
        time=row.time,
        type=row.type,
        level=row.level,
        tenant_id=row.tenant_id,
        volume_id=row.volume_id,
        replica_id=row.replica_id,
        backend_id=row.backend_id,
        host_id=row.host_id,
        message=row.message,
        details=row.details,
    )


async def wait(core: Core, ask: Ask, seconds: float) -> wire.EventPage:
    """The next events, after at most ``seconds`` of waiting for a first one.

    It occupies a worker thread only for the moments in which it looks.
    """
    watcher = watch.of(core, number, core.conf.events.poll_interval)
    return await watcher.first(
        lambda: page(core, ask), lambda found: bool(found.events or found.lost), seconds
    )


# -- forgetting ---------------------------------------------------------------------------------


def forget(core: Core) -> int:
    """Delete the oldest events beyond what is to be kept; gives how many."""
    head = number(core)
    options = core.conf.events
    with core.db.read() as session:
        old = select(func.max(models.Event.seq)).where(
            models.Event.time < now_ms() - options.keep_days * DAY_MS
        )
        limit = max(head - options.keep, session.scalar(old) or 0)
        known = _value(session, FORGOTTEN)
    if limit <= known:
        return 0
    # First said, then done: a reader is never told that it has seen everything when it has not.
    with core.db.write() as session:
        _counter(session, FORGOTTEN).value = limit
    return _delete(core, limit)


def _delete(core: Core, limit: int) -> int:
    done = 0
    while True:
        with core.db.write() as session:
            query = select(models.Event.id).where(models.Event.seq > 0, models.Event.seq <= limit)
            ids = session.scalars(query.limit(AT_ONCE)).all()
            session.execute(delete(models.Event).where(models.Event.id.in_(ids)))
        done += len(ids)
        if len(ids) < AT_ONCE:
            return done


DUTIES = (
    Duty("number-events", number, lambda core: float(core.conf.events.poll_interval)),
    Duty("forget-events", forget, lambda _core: 600.0),
)
