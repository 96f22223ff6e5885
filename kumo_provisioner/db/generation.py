# SPDX-License-Identifier: Apache-2.0
"""``Volume.generation`` rises with every change of a volume, whoever makes it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from kumo_provisioner.db import models


def _volume(session: Session, row: Any) -> models.Volume | None:
    """The volume that a row is a part of, when this session has read it."""
    if isinstance(row, models.Volume):
        return row
    if isinstance(row, models.Replica | models.Publication):
        known = row.__dict__.get("volume")
        if known is None and row.volume_id is not None:
            known = session.identity_map.get(identity_key(models.Volume, row.volume_id))
        return known if isinstance(known, models.Volume) else None
    return None


def bump(session: Session, _context: Any, _instances: Any) -> None:
    """Listener for ``before_flush``."""
    rows = [*session.new, *session.deleted]
    rows += [row for row in session.dirty if session.is_modified(row)]
    changed = {_volume(session, row) for row in rows}
    for volume in changed:
        if volume is not None and volume not in session.new and volume not in session.deleted:
            volume.generation = (volume.generation or 0) + 1
