# SPDX-License-Identifier: Apache-2.0
"""Typed errors with stable codes, shared by every part that speaks the wire.

The code is what travels in the ``status`` field of an answer. ``transient`` is decided by the
server and travels too: a client repeats a call only when it is true. The codes DeviceNotFound,
NotExists, AlreadyExists, AlreadyPublished, VolumeNotPublished, NoGroups, InvalidLocationValue and
NotAvailable are those that existing KumoScale clients know.
"""

from __future__ import annotations

from typing import Any, ClassVar

# Old clients look for these texts in every body and take any hit as a credential failure, so
# they must not appear in the data of a successful answer.
RESERVED_TEXTS = ("Status 401", "Status 403", "Status 404")


class KumoError(Exception):
    """Base of all errors.

    :param message: one sentence for a person; never contains a secret.
    :param volume: uuid or alias of the volume concerned.
    :param node: persistent id or address of the storage node concerned.
    :param way_out: what the reader can do about it.
    :param details: further JSON values for programs.
    """

    code: ClassVar[str] = "InternalError"
    http_status: ClassVar[int] = 500
    transient: bool = False
    # Set by the client, never sent: an earlier try of the same call reached a server and its
    # outcome is not known, so what this error complains about may be our own doing.
    repeated: bool = False

    def __init__(
        self,
        message: str,
        *,
        volume: str | None = None,
        node: str | None = None,
        way_out: str | None = None,
        details: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.volume = volume
        self.node = node
        self.way_out = way_out
        self.details = details or {}
        self.request_id = request_id

    @property
    def description(self) -> str:
        """The text sent as ``description`` and shown to people."""
        parts = [self.message.rstrip(".") + "."]
        for name, value in (("Volume", self.volume), ("Node", self.node)):
            if value and value not in self.message:
                parts.append(f"{name}: {value}.")
        if self.way_out:
            parts.append(self.way_out.rstrip(".") + ".")
        return " ".join(parts)

    def __str__(self) -> str:
        return f"{self.code}: {self.description}"

    def to_wire(self) -> dict[str, Any]:
        """The JSON body of this error."""
        body: dict[str, Any] = {
            "status": self.code,
            "description": self.description,
            "transient": self.transient,
            "requestId": self.request_id or "",
        }
        for key, value in (("volume", self.volume), ("node", self.node), ("wayOut", self.way_out)):
            if value:
                body[key] = value
        if self.details:
            body["details"] = self.details
        return body


class InternalError(KumoError):
    """A defect of the server; the request id leads to the log."""


class InvalidInputError(KumoError):
    code = "InvalidInput"
    http_status = 400


class InvalidLocationValueError(KumoError):
    """Rack, zone or region longer than 255 characters."""

    code = "InvalidLocationValue"
    http_status = 400


class UnauthorizedError(KumoError):
    code = "Unauthorized"
    http_status = 401

    @property
    def description(self) -> str:
        # Old clients recognise bad credentials by this text alone.
        return f"Status 401: {super().description}"


class ForbiddenError(KumoError):
    code = "Forbidden"
    http_status = 403

    @property
    def description(self) -> str:
        return f"Status 403: {super().description}"


class NotExistsError(KumoError):
    """The object is definitely not there."""

    code = "NotExists"
    http_status = 404


class DeviceNotFoundError(NotExistsError):
    code = "DeviceNotFound"


class MethodNotAllowedError(KumoError):
    code = "MethodNotAllowed"
    http_status = 405


class AlreadyExistsError(KumoError):
    code = "AlreadyExists"
    http_status = 409


class AlreadyPublishedError(KumoError):
    code = "AlreadyPublished"
    http_status = 200


class VolumeNotPublishedError(KumoError):
    code = "VolumeNotPublished"
    http_status = 404


class InUseError(KumoError):
    """Something still depends on the object: a host, a snapshot, a replica."""

    code = "InUse"
    http_status = 409


class ConflictError(KumoError):
    """What is asked contradicts what is: another size, source or host identity."""

    code = "Conflict"
    http_status = 409


class BusyError(KumoError):
    """Another operation works on the same object; repeat later."""

    code = "Busy"
    http_status = 409
    transient = True


class OutdatedRecordError(KumoError):
    """The database of the provisioner is an old copy, or another one than the storage node follows.

    Nothing is taken away until an operator has accepted the database.
    """

    code = "OutdatedRecord"
    http_status = 409
    transient = True


class NotCoherentError(KumoError):
    """The legs of an attached replicated volume cannot be captured at one moment."""

    code = "NotCoherent"
    http_status = 409


class StaleError(KumoError):
    """A leg missed writes and nothing fresher can be reached."""

    code = "Stale"
    http_status = 409


class LastReplicaError(KumoError):
    """The only replica that has all writes would go."""

    code = "LastReplica"
    http_status = 409


class TooManyReplicasError(KumoError):
    """There would be more legs than a volume may have, or a second spare."""

    code = "TooManyReplicas"
    http_status = 409


class OverBudgetError(KumoError):
    """A tenant would use more than its budget."""

    code = "OverBudget"
    http_status = 409


class NoSpaceError(KumoError):
    code = "NoSpace"
    http_status = 409


class NoGroupsError(KumoError):
    """The storage node has no pool."""

    code = "NoGroups"
    http_status = 409


class NotAvailableError(KumoError):
    """An incompatible storage node, or one that gave no persistent id."""

    code = "NotAvailable"
    http_status = 409


class BackendUnavailableError(KumoError):
    """A storage node could not be asked; nothing is known about the outcome."""

    code = "BackendUnavailable"
    http_status = 503
    transient = True


class DatabaseUnavailableError(KumoError):
    """The database of the provisioner cannot be used; repeat when it is back."""

    code = "DatabaseUnavailable"
    http_status = 503
    transient = True


class NotReadyError(KumoError):
    """This server must not get requests now: it starts, ends, or lacks what it needs."""

    code = "NotReady"
    http_status = 503
    transient = True


class UnsafeDiskError(KumoError):
    """A disk holds data or was not given to us; it is not touched."""

    code = "UnsafeDisk"
    http_status = 409


class CommunicationError(KumoError):
    """Made by the client: no endpoint gave an answer inside the time budget."""

    code = "CommunicationError"
    http_status = 503
    transient = True


class ProtocolError(KumoError):
    """Made by the client: an answer that is not what the API promises."""

    code = "ProtocolError"
    http_status = 502


class ConfigError(KumoError):
    """A setting is missing or wrong; raised when a program starts."""

    code = "ConfigError"
    http_status = 500


class RemoteError(KumoError):
    """An error answer whose code this client does not know."""

    http_status = 502

    def __init__(self, message: str, *, remote_code: str, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.remote_code = remote_code

    def __str__(self) -> str:
        return f"{self.remote_code}: {self.description}"

    def to_wire(self) -> dict[str, Any]:
        return super().to_wire() | {"status": self.remote_code}


def _subclasses(cls: type[KumoError]) -> list[type[KumoError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found.extend(_subclasses(sub))
    return found


def known_codes() -> dict[str, type[KumoError]]:
    """All stable codes, with the class each one stands for."""
    return {
        cls.code: cls
        for cls in reversed(_subclasses(KumoError))
        if cls not in (KumoError, RemoteError)
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def from_wire(body: dict[str, Any], http_status: int) -> KumoError:
    """Make the typed error of an answer body.

    :param body: decoded JSON object with ``status`` and, usually, ``description``.
    :param http_status: the HTTP status code, for the message when the body says little.
    """
    code = str(body.get("status") or f"HTTP {http_status}")
    message = str(body.get("description") or f"the server answered HTTP {http_status}")
    for reserved in ("Status 401: ", "Status 403: "):
        message = message.removeprefix(reserved)
    way_out = _text(body.get("wayOut"))
    if way_out:
        # The description has it too; it is not to be said twice when the error travels on.
        message = message.removesuffix(f" {way_out.rstrip('.')}.")
    details = body.get("details")
    kwargs: dict[str, Any] = {
        "volume": _text(body.get("volume")),
        "node": _text(body.get("node")),
        "way_out": way_out,
        "details": details if isinstance(details, dict) else None,
        "request_id": _text(body.get("requestId")),
    }
    cls = known_codes().get(code)
    error = (
        RemoteError(message, remote_code=code, **kwargs) if cls is None else cls(message, **kwargs)
    )
    if isinstance(body.get("transient"), bool):
        error.transient = body["transient"]
    return error
