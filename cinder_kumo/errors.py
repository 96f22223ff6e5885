# SPDX-License-Identifier: Apache-2.0
"""Errors of the provisioner as Cinder's exceptions: the one place where they are translated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pydantic
from cinder import exception
from oslo_context import context
from oslo_log import log as logging

from kumo_client import errors, request_id

LOG = logging.getLogger(__name__)


def text(action: str, error: errors.KumoError) -> str:
    """One line for people: what was tried, why it failed, the way out and the request id."""
    parts = [f"{action} failed: {error}"]
    if error.request_id:
        parts.append(f"[{error.request_id}]")
    return " ".join(parts)


def to_cinder(
    action: str,
    error: errors.KumoError,
    busy: type[exception.CinderException] = exception.VolumeIsBusy,
) -> exception.CinderException:
    """The exception that Cinder's manager expects for an error.

    ``busy`` (``VolumeIsBusy`` or ``SnapshotIsBusy``) leaves the object available instead of in
    error, see ``delete_volume`` and ``delete_snapshot`` in ``cinder/volume/manager.py``. What the
    manager has no special way for is ``VolumeBackendAPIException``, or ``VolumeDriverException``
    if the backend works and only the request cannot be met as things are.
    """
    message = text(action, error)
    if isinstance(error, errors.ConfigError):
        return exception.InvalidConfigurationValue(message=message)
    if isinstance(error, errors.InUseError):
        return busy(message=message)
    if isinstance(error, errors.NotCoherentError):
        return exception.VolumeDriverException(message=message)
    return exception.VolumeBackendAPIException(data=message)


@contextlib.contextmanager
def translated(
    action: str, busy: type[exception.CinderException] = exception.VolumeIsBusy
) -> Iterator[None]:
    """Run a block that talks to the provisioner, under the id of Cinder's request.

    :param action: what is done to which object, "create volume <name_id>".
    :param busy: the exception for an object that something still depends on.
    :raises cinder.exception.CinderException: for every error of :mod:`kumo_client.errors`.
    """
    cinder_context = context.get_current()
    try:
        with request_id.use(cinder_context.request_id if cinder_context else None):
            yield
    except errors.KumoError as error:
        LOG.error("%s", text(action, error))
        raise to_cinder(action, error, busy) from error
    except pydantic.ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise exception.InvalidInput(reason=f"{action} failed: {wrong}") from error
