# SPDX-License-Identifier: Apache-2.0
"""Events: what happened, for hosts, tools and people."""

from __future__ import annotations

from typing import Any

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client.schemas.event import FATAL, INFO, WARN
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models

LOG = log.getLogger(__name__)
_LEVELS = {INFO: log.INFO, WARN: log.WARNING, FATAL: log.ERROR}


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
    session.add(
        models.Event(
            time=now_ms(),
            type=what,
            level=level,
            tenant_id=tenant,
            volume_id=volume,
            replica_id=replica,
            backend_id=backend,
            host_id=host,
            message=message,
            details=details,
        )
    )
    LOG.log(_LEVELS.get(level, log.INFO), "%s: %s", what, message)
