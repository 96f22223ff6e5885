# SPDX-License-Identifier: Apache-2.0
"""What a target itself says of its namespaces: the Identify command.

sysfs shows what the kernel knows, which lags behind and does not say whether a scan is under way.
Layouts: NVMe base specification 2.0, 5.17.2, and NVM command set specification 1.0, 4.1.5.
"""

from __future__ import annotations

import struct
import uuid

from os_brick_nvmeof.context import Context

_NAMESPACE = 0x00
_ACTIVE = 0x02
_IDENTIFIERS = 0x03
_NGUID = 2
_UUID = 3
_FORMATS_AT = 128
_FLBAS_AT = 26
# Namespaces in one answer. A list that is full has to be asked for again from its end.
_FULL = 1024


def size(ctx: Context, controller: str, nsid: int) -> int:
    """Bytes of a namespace at the target.

    :param controller: "nvme3".
    :raises OSError: the controller did not tell.
    """
    data = ctx.host.identify(f"/dev/{controller}", _NAMESPACE, nsid)
    (blocks,) = struct.unpack_from("<Q", data)
    flbas = data[_FLBAS_AT]
    # The low four bits, and two more above them where there are more than 16 formats.
    chosen = (flbas & 0x0F) | ((flbas >> 1) & 0x30)
    shift = data[_FORMATS_AT + 4 * chosen + 2]
    return int(blocks) << int(shift)


def offers(ctx: Context, controller: str, wanted: str) -> bool:
    """Whether a target offers this host a namespace of that UUID.

    :raises OSError: the controller did not tell.
    """
    after = 0
    while True:
        data = ctx.host.identify(f"/dev/{controller}", _ACTIVE, after)
        listed = [nsid for (nsid,) in struct.iter_unpack("<I", data) if nsid]
        if any(wanted in _uuids(ctx, controller, nsid) for nsid in listed):
            return True
        if len(listed) < _FULL:
            return False
        after = listed[-1]


def _uuids(ctx: Context, controller: str, nsid: int) -> set[str]:
    """Identifiers of a namespace, as sysfs would show them in ``uuid``."""
    data = ctx.host.identify(f"/dev/{controller}", _IDENTIFIERS, nsid)
    found = set()
    at = 0
    while at + 4 <= len(data) and data[at + 1]:
        kind, length = data[at], data[at + 1]
        value = data[at + 4 : at + 4 + length]
        if kind in (_UUID, _NGUID) and len(value) == 16:
            found.add(str(uuid.UUID(bytes=value)))
        at += 4 + length
    return found
