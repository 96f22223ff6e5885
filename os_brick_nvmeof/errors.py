# SPDX-License-Identifier: Apache-2.0
"""Errors of the connector: os-brick's own kinds, each with a stable code and what it is about.

Nova and Cinder know os-brick's classes, so ours derive from those that they handle
(os_brick/exception.py).
"""

from __future__ import annotations

from os_brick import exception


class KumoBrickError(exception.BrickException):
    """Base. ``code`` is stable: what programs may rely on.

    :param text: what went wrong, one sentence.
    :param volume: uuid of the volume; "" when unknown.
    :param leg: uuid of the leg, where it is about one.
    :param node: name or id of the storage node.
    :param portal: the portal, as text.
    :param way_out: what a person can do.
    """

    code = "Error"

    def __init__(
        self,
        text: str,
        *,
        volume: str = "",
        leg: str = "",
        node: str = "",
        portal: str = "",
        way_out: str = "",
    ) -> None:
        self.text = text
        self.volume = volume
        self.leg = leg
        self.node = node
        self.portal = portal
        self.way_out = way_out
        super().__init__(message=self._message())

    def _message(self) -> str:
        about = (
            ("volume", self.volume),
            ("leg", self.leg),
            ("node", self.node),
            ("portal", self.portal),
        )
        named = ", ".join(f"{what} {which}" for what, which in about if which)
        message = f"{self.code}: {self.text}"
        if named:
            message += f" ({named})"
        return f"{message}; {self.way_out}" if self.way_out else message


class BadPropertiesError(KumoBrickError, exception.InvalidConnectorProtocol):
    """The connection properties make no sense."""

    code = "BadProperties"


class UnreachableError(KumoBrickError, exception.TargetPortalNotFound):
    """A subsystem could not be connected, or its controller is not live, in time."""

    code = "Unreachable"


class SecurityError(UnreachableError):
    """A connection cannot have the keys, or the TLS, that its options or its node ask for."""

    code = "Security"


class NamespaceMissingError(KumoBrickError, exception.VolumeDeviceNotFound):
    """The subsystem is connected and definitely does not offer the namespace."""

    code = "NamespaceMissing"


class WrongNamespaceError(KumoBrickError):
    """A namespace is not the one its name or number promised: its UUID is another."""

    code = "WrongNamespace"


class StaleError(KumoBrickError):
    """Legs that may be fresher cannot be reached: what is at hand may be old data."""

    code = "Stale"


class ForeignDataError(KumoBrickError):
    """A leg holds the superblock of another array."""

    code = "ForeignData"


class UnknownDataError(KumoBrickError):
    """What is on a leg could not be told, and telling is needed."""

    code = "UnknownData"


class ArrayError(KumoBrickError):
    """An md array could not be made, assembled, grown or stopped."""

    code = "Array"


class StillInUseError(KumoBrickError):
    """A device did not go: somebody holds it open, or the kernel still uses it."""

    code = "StillInUse"


class SizeError(KumoBrickError):
    """A device does not have the size it must have."""

    code = "Size"


class MultipathError(KumoBrickError):
    """Multipath was asked for and cannot be had on this host."""

    code = "Multipath"


class HostError(KumoBrickError):
    """The kernel, the privileged daemon or the lock directory of the host did not do their part."""

    code = "Host"
