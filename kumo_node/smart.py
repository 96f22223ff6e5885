# SPDX-License-Identifier: Apache-2.0
"""The SMART log of NVMe disks, through nvme-cli.

Field names are those of ``nvme smart-log -o json`` (nvme-cli, ``nvme-print-json.c``), the meaning
is that of the NVM Express Base Specification 2.0, section 5.16.1.3. Temperatures are in kelvins
there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

from oslo_log import log

from kumo_node.executor import CommandError, Executor

LOG = log.getLogger(__name__)
_NAMESPACE = re.compile(r"nvme\d+n\d+")
_KELVIN = 273
# Bits of the field "critical warning".
_WARNINGS = {
    0: "its spare space is below the threshold",
    1: "its temperature is outside the limits",
    2: "its reliability is degraded",
    3: "its media are read-only",
    4: "its memory backup has failed",
    5: "its persistent memory is read-only or unreliable",
}


@dataclasses.dataclass(frozen=True)
class Smart:
    """What the disk says of itself; None is not known. ``temperature`` in degrees Celsius."""

    wear_percent: int | None = None
    media_errors: int | None = None
    temperature: int | None = None
    critical_warning: int | None = None

    def warnings(self) -> list[str]:
        """The critical warnings in words."""
        bits = self.critical_warning or 0
        return [text for bit, text in _WARNINGS.items() if bits & (1 << bit)]


class SmartLog:
    """Reads the log of a disk."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def read(self, device: str) -> Smart | None:
        """The log of a disk; None when it has none or it cannot be had now.

        :param device: real path of the disk's device node.
        """
        if not _NAMESPACE.fullmatch(os.path.basename(device)):
            return None
        try:
            return _parse(self.executor.run("nvme", "smart-log", "-o", "json", device))
        except (CommandError, ValueError, TypeError, AttributeError) as error:
            LOG.debug("No SMART log of %s: %s", device, error)
            return None


def _parse(text: str) -> Smart:
    fields = json.loads(text)
    kelvin = _number(fields.get("temperature"))
    return Smart(
        wear_percent=_number(fields.get("percent_used")),
        media_errors=_number(fields.get("media_errors")),
        temperature=kelvin - _KELVIN if kelvin is not None else None,
        critical_warning=_number(fields.get("critical_warning")),
    )


def _number(value: Any) -> int | None:
    # Counters of 128 bits are texts in some versions; the warning is an object in others.
    if isinstance(value, dict):
        value = value.get("value")
    return int(value) if value is not None else None
