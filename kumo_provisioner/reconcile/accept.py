# SPDX-License-Identifier: Apache-2.0
"""An operator has looked at the differences: from now on the record counts again.

The database goes on along a new branch, and the nodes that were asked follow it. One that was away
and has changed since the copy was made is noticed when it is back, because it remembers a state
from which the database does not come.
"""

from __future__ import annotations

from collections.abc import Iterable

from oslo_log import log
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.schemas import restored as wire
from kumo_client.schemas.event import WARN
from kumo_provisioner import stamps
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.reconcile.differences import look
from kumo_provisioner.reconcile.plan import DropExport
from kumo_provisioner.services import arrays, due, events, restored

LOG = log.getLogger(__name__)
LOCK = "database"


def accept(core: Core, request: wire.Accept) -> wire.Accepted:
    """Let the record count again.

    :raises ConflictError: there is no doubt, or exports are to be kept and a host is not known.
    :raises BusyError: somebody else accepts just now.
    """
    with core.locks.hold(LOCK):
        found = look(core)
        if not found.shown.doubt:
            raise errors.ConflictError("the database is not in doubt; there is nothing to accept")
        drops = found.drops if request.exports == wire.KEEP else None
        answer = core.db.run(lambda session: _continue(session, drops))
        # Nodes are told before the doubt ends: one that is not told yet refuses by itself.
        answer.left = restored.catch_up(core, found.memories)
        answer.left += [one.backend_id for one in found.shown.backends if one.judgement == "silent"]
        core.db.run(lambda session: _settle(session, found.shown, answer))
        core.stamps.load()
    core.wake.set()
    return answer


def _continue(session: Session, drops: list[DropExport] | None) -> wire.Accepted:
    """Go on along a new branch.

    :param drops: exports to take into the record; None for none, and then what was being made when
        the copy was is undone.
    """
    row = stamps.row(session)
    kept = 0
    if drops is not None:
        kept = _keep(session, drops)
        _keep_unfinished(session)
    count = _distrust_arrays(session, restored.believed_until(stamps.known(row)))
    stamps.fork(row)
    return wire.Accepted(exports_kept=kept, arrays=count)


def _keep(session: Session, drops: Iterable[DropExport]) -> int:
    """Publish volumes to the hosts that have them."""
    # An export to a storage node is the source of a copy that the record knows nothing of.
    nodes = {
        naming.node_host_nqn(one) for one in session.scalars(select(models.Backend.persistent_id))
    }
    wanted = {(one.volume_id, one.host_nqn) for one in drops if one.host_nqn not in nodes}
    query = select(models.Host.nqn, models.Host.uuid)
    hosts = {nqn: uuid for nqn, uuid in session.execute(query)}
    unknown = sorted({nqn for _, nqn in wanted} - hosts.keys())
    if unknown:
        raise errors.ConflictError(
            f"no host is known of the NQNs {', '.join(unknown[:8])}, which have exports",
            way_out="let the agents of these hosts run, which make them known; or have the "
            "exports taken away with --exports drop",
            details={"hostNqns": unknown},
        )
    kept = 0
    for volume_id, nqn in sorted(wanted):
        volume = session.get(models.Volume, volume_id)
        if volume is None or session.get(models.Publication, (volume_id, hosts[nqn])) is not None:
            continue
        since = arrays.number(volume)
        arrays.begun(volume, since)
        session.add(
            models.Publication(
                volume_id=volume_id, host_id=hosts[nqn], status=models.PUBLISHED, since=since
            )
        )
        if volume.replicated:
            arrays.enter(session, volume, models.ARRAY_OPEN, hosts[nqn])
        kept += 1
    return kept


def _keep_unfinished(session: Session) -> None:
    """What was being made when the copy was may have been finished, and is in use now."""
    for table, old, new in (
        (models.Volume, models.CREATING, models.AVAILABLE),
        (models.Publication, models.PUBLISHING, models.PUBLISHED),
    ):
        session.execute(
            update(table).where(table.status == old).values(status=new),
            execution_options={"synchronize_session": False},
        )


def _distrust_arrays(session: Session, until: int) -> int:
    """Arrays that are new or clean in the record may have been written to since."""
    volume = models.Volume
    changed = session.execute(
        update(volume)
        .where(
            volume.num_replicas > 1,
            volume.array_state.in_((models.ARRAY_NEW, models.ARRAY_CLEAN)),
            volume.created < until,
        )
        .values(array_state=models.ARRAY_OPEN, last_host="", generation=volume.generation + 1),
        execution_options={"synchronize_session": False},
    )
    return int(changed.rowcount)  # type: ignore[attr-defined]


def _settle(session: Session, shown: wire.Restored, answer: wire.Accepted) -> None:
    row = stamps.row(session)
    row.doubt, row.reason, row.since = "", "", 0
    row.away = sorted(answer.left)
    due.mark(session)
    events.record(
        session,
        "database.accepted",
        f"an operator has accepted the database; it is {stamps.known(row).line.now} now, "
        f"{len(shown.differences)} differences are settled from now on",
        level=WARN,
        exportsKept=answer.exports_kept,
        left=answer.left,
    )
