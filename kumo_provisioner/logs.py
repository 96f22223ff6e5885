# SPDX-License-Identifier: Apache-2.0
"""Logging: oslo.log, with the request id in every line and no secret in any."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from oslo_config import cfg
from oslo_log import log

from kumo_client import redact, request_id


def setup(conf: cfg.ConfigOpts, secrets: Iterable[str] = ()) -> None:
    """Start logging as configured.

    :param secrets: texts that must not appear in a log.
    """
    log.setup(conf, "kumo-provisioner")
    make = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        # The attribute that oslo.log prints; without one it uses the format without a request.
        record.request_id = request_id.current()
        return record

    logging.setLogRecordFactory(factory)
    hiding = redact.RedactingFilter(secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(hiding)
    # Each line of the client library names the request itself.
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
