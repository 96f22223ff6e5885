# SPDX-License-Identifier: Apache-2.0
"""Every error of the client becomes an exception that Cinder knows."""

import logging

import pytest
from cinder import exception

from cinder_kumo import errors
from kumo_client import errors as client_errors
from kumo_client.schemas.host import HostProbe


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("InUse", exception.VolumeIsBusy),
        ("NotCoherent", exception.VolumeDriverException),
        ("ConfigError", exception.InvalidConfigurationValue),
        ("NotExists", exception.VolumeBackendAPIException),
        ("NoSpace", exception.VolumeBackendAPIException),
        ("Unauthorized", exception.VolumeBackendAPIException),
        ("CommunicationError", exception.VolumeBackendAPIException),
        ("InternalError", exception.VolumeBackendAPIException),
    ],
)
def test_code_becomes_exception(code, expected):
    error = client_errors.known_codes()[code]("it went wrong", request_id="req-1", way_out="Wait")
    with pytest.raises(expected) as caught, errors.translated("create volume v-1"):
        raise error
    for part in ("create volume v-1 failed", code, "it went wrong", "Wait", "[req-1]"):
        assert part in str(caught.value)
    assert caught.value.__cause__ is error


def test_every_known_code_is_translated():
    for cls in client_errors.known_codes().values():
        with pytest.raises(exception.CinderException), errors.translated("do it"):
            raise cls("no")


def test_unknown_code_is_shown():
    with (
        pytest.raises(exception.VolumeBackendAPIException, match="QuotaGone: no more"),
        errors.translated("do it"),
    ):
        raise client_errors.RemoteError("no more", remote_code="QuotaGone")


def test_busy_snapshot():
    with (
        pytest.raises(exception.SnapshotIsBusy, match="delete snapshot s-1"),
        errors.translated("delete snapshot s-1", busy=exception.SnapshotIsBusy),
    ):
        raise client_errors.InUseError("a volume hangs on it")


def test_bad_value_is_named_without_showing_it():
    with (
        pytest.raises(exception.InvalidInput, match="attach v-1 failed: host_nqn") as caught,
        errors.translated("attach v-1"),
    ):
        HostProbe(host_nqn="iqn.wrong-and-long-enough", host_id="h")
    assert "iqn.wrong" not in str(caught.value)


def test_error_is_logged_once(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(exception.CinderException), errors.translated("extend volume v-1"):
        raise client_errors.NoSpaceError("full", request_id="req-7")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["extend volume v-1 failed: NoSpace: full. [req-7]"]


def test_other_exceptions_pass():
    with pytest.raises(KeyError), errors.translated("do it"):
        raise KeyError("bug")
