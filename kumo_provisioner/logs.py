# SPDX-License-Identifier: Apache-2.0
"""Logging: oslo.log, with the request id in every line and no secret in any."""

from __future__ import annotations

import datetime
import json
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
    secrets = list(secrets)
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
        if conf.logging.json:
            handler.setFormatter(JsonFormatter(secrets))
    # Each line of the client library names the request itself.
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ``time`` (UTC), ``level``, ``logger``, ``requestId``,
    ``message``, and where there are any ``fields`` and ``exception``.

    Message and exception were redacted by the filter of the handler.

    :param secrets: texts that must not appear in the fields either.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = list(secrets)

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "requestId": getattr(record, "request_id", None) or "",
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            told["fields"] = redact.json_value(fields, self._secrets)
        if record.exc_text or record.exc_info:
            text = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
            told["exception"] = text
        return json.dumps(told, ensure_ascii=False, default=str)
