# SPDX-License-Identifier: Apache-2.0
"""Keys and TLS of connections: what is asked of the kernel, and what its answers mean.

The kernel writes an option that it does not know, or a key that does not begin as one, to its log
with all that is in it (nvmf_parse_options, drivers/nvme/host/fabrics.c). So it is never given one
before it has said that it knows the option, and the key has been looked at here.
"""

from __future__ import annotations

import base64
import errno
import re
import zlib
from collections.abc import Callable, Collection

from oslo_config import cfg

from os_brick_nvmeof import errors
from os_brick_nvmeof.props import Portal

_KEYS = ("dhchap_secret", "dhchap_ctrl_secret")
_KEY = re.compile(r"DHHC-1:0[0-3]:([A-Za-z0-9+/]+={0,2}):")
# Bytes of a secret (nvme_auth_extract_key in drivers/nvme/common/auth.c).
_LENGTHS = (32, 48, 64)
_CRC = 4
_SECTION = "in [os_brick_nvmeof] of this host"
_KEYS_WAY = (
    f"compare dhchap_secret and dhchap_ctrl_secret {_SECTION} with the keys that the node has for "
    "the host's NQN"
)


def options(chosen: cfg.GroupAttr, portal: Portal) -> list[str]:
    """Connect options for the keys and the TLS that a host is to have, as the kernel parses them.

    They hold secrets.

    :param chosen: options of the connector.
    :raises SecurityError: a key is not one.
    """
    found = []
    for name in _KEYS:
        key = chosen[name]
        if key:
            if not is_key(key):
                raise _error(
                    portal,
                    f"{name} is no DH-HMAC-CHAP key",
                    f"set {name} {_SECTION} to a key as 'nvme gen-dhchap-key' prints it",
                )
            found.append(f"{name}={key}")
    if chosen.tls and portal.transport == "tcp":
        found.append("tls")
    return found


def is_key(text: str) -> bool:
    """Whether it is a key in the form of NVMe base specification 2.0, section 8.13.5.8."""
    match = _KEY.fullmatch(text)
    if not match:
        return False
    try:
        whole = base64.b64decode(match[1], validate=True)
    except ValueError:
        return False
    # Bits past the end are ignored by the decoder.
    exact = base64.b64encode(whole).decode() == match[1]
    secret, crc = whole[:-_CRC], whole[-_CRC:]
    return exact and len(secret) in _LENGTHS and zlib.crc32(secret).to_bytes(_CRC, "little") == crc


def check_known(portal: Portal, given: list[str], known: Callable[[], set[str] | None]) -> None:
    """See whether the kernel knows the options that are needed.

    :param given: from :func:`options`.
    :param known: asks the kernel; None from one that does not tell, which is older than all these.
    :raises SecurityError: it does not.
    """
    if not given:
        return
    wanted = {each.partition("=")[0] for each in given}
    lacking = wanted - (known() or set())
    if lacking:
        raise _lacking(portal, lacking)


def explain(chosen: cfg.GroupAttr, portal: Portal, error: OSError) -> errors.SecurityError | None:
    """What a refused connect has to do with keys or TLS; None if that is not known.

    The errnos are those that Linux 6.12 was seen to answer with (drivers/nvme/host/auth.c, tcp.c).

    :param error: of a connect to a portal that answers.
    """
    tls = chosen.tls and portal.transport == "tcp"
    if error.errno == errno.EKEYREJECTED:
        text = "node and host do not prove who they are by DH-HMAC-CHAP: a key is wrong"
        return _error(portal, text, _KEYS_WAY)
    if error.errno == errno.ENOKEY and tls:
        text = "TLS is asked for, and the kernel's key ring .nvme has no key for it"
        return _error(portal, text, "insert the key with 'nvme gen-tls-key --insert'")
    if error.errno == errno.ENOKEY:
        text = "the node asks for a DH-HMAC-CHAP key (dhchap_secret), and this host has none"
        return _error(portal, text, f"set dhchap_secret {_SECTION}")
    if error.errno == errno.ESRCH and tls:
        return _error(portal, "TLS is asked for, and tlshd does not run", "start tlshd")
    return None


def check_made(portal: Portal, given: list[str], attributes: Collection[str]) -> None:
    """See whether the kernel has done with a new controller what the options ask for.

    Linux 6.1 takes keys and does nothing with them when it was built without NVME_AUTH; its
    controllers have no attributes for them then (drivers/nvme/host/core.c).

    :param given: from :func:`options`.
    :param attributes: names of the controller's attributes.
    :raises SecurityError: it has not.
    """
    wanted = {each.partition("=")[0] for each in given} & set(_KEYS)
    if not wanted.issubset(attributes):
        raise _lacking(portal, wanted)


def _lacking(portal: Portal, names: Collection[str]) -> errors.SecurityError:
    shown = ", ".join(sorted(names))
    return _error(
        portal,
        f"this host's kernel cannot do {shown}",
        "boot one with NVME_HOST_AUTH (DH-HMAC-CHAP) and NVME_TCP_TLS (TLS), or take "
        f"{shown} out of [os_brick_nvmeof]",
    )


def _error(portal: Portal, text: str, way_out: str) -> errors.SecurityError:
    return errors.SecurityError(text, portal=str(portal), way_out=way_out)
