# SPDX-License-Identifier: Apache-2.0
"""Which of a volume's attachments share one publication.

The provisioner publishes a volume to a host, Cinder attaches it to an instance: instances of one
host share the publication, and it must stay until the last of them is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In these states cinder-volume attaches the volume to its own host without an attachment record
# (cinder/volume/driver.py, _attach_volume): the end of that attachment is the end of no record.
INTERNAL_STATES = frozenset({"uploading", "downloading", "backing-up", "restoring-backup"})


def on_host(volume: Any, connector: Mapping[str, Any]) -> list[Any]:
    """The recorded attachments of a volume to the host of ``connector``."""
    return [
        attachment
        for attachment in volume.volume_attachment
        if attachment.connector and attachment.connector.get("uuid") == connector["uuid"]
    ]


def still_needed(volume: Any, connector: Mapping[str, Any]) -> bool:
    """Whether the host needs the volume after the attachment that is being ended.

    The record of that attachment is still there when Cinder calls the driver
    (cinder/volume/api.py, ``attachment_delete``).
    """
    ending = 0 if volume.status in INTERNAL_STATES else 1
    return len(on_host(volume, connector)) > ending
