# SPDX-License-Identifier: Apache-2.0
"""Options of the driver.

The ``kioxia_*`` options carry the names, types and defaults of Cinder's in-tree KumoScale driver
(``cinder/volume/drivers/kioxia/kumoscale.py``), so that the section of an existing ``cinder.conf``
needs only another ``volume_driver``. They are objects of our own, because ``kioxia_token`` must be
secret here and numbers have bounds. Both drivers may live in one process: options are registered
only through :class:`cinder.volume.configuration.Configuration`, which keeps whichever definition
of a name came first, and never in ``[DEFAULT]``, where the in-tree module registers its own and a
second, different definition would be an error. :func:`register` makes the token secret whoever
defined it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from cinder.volume import configuration as cinder_configuration
from oslo_config import cfg

from kumo_client import errors

DEFAULT_PORT = 8090
# Where the in-tree driver looks for its client certificate when nothing is set.
DEFAULT_KIOXIA_CAFILE = "/etc/kioxia/ssdtoolbox.pem"
MAX_REPLICAS = 3

KIOXIA_OPTS = [
    cfg.StrOpt(
        "kioxia_url",
        help="URL of the provisioner, https://host:port. An IPv6 address stands in brackets. "
        "kumo_urls takes precedence.",
    ),
    cfg.StrOpt(
        "kioxia_cafile",
        help="PEM file for TLS. If it holds a private key, it is presented as the client "
        "certificate, as the in-tree KumoScale driver does. Unless kumo_ca_file is set, the "
        "certificates in it are also those that the provisioner's certificate is verified with. "
        f"If unset, {DEFAULT_KIOXIA_CAFILE} is used in the same way if it exists.",
    ),
    cfg.StrOpt(
        "kioxia_token",
        secret=True,
        help="Bearer token for the provisioner. kumo_token_file takes precedence and keeps the "
        "token out of this file.",
    ),
    cfg.IntOpt(
        "kioxia_num_replicas",
        default=1,
        min=1,
        max=MAX_REPLICAS,
        help="Replicas of a new volume, each on another storage node. With more than one the "
        "host keeps them alike as an md raid1 array. Extra spec: kumo:num_replicas.",
    ),
    cfg.IntOpt(
        "kioxia_max_iops_per_gb",
        default=0,
        min=0,
        help="Upper limit in operations per second for each GiB; 0 means no limit. "
        "Extra spec: kumo:max_iops_per_gb.",
    ),
    cfg.IntOpt(
        "kioxia_desired_iops_per_gb",
        default=0,
        min=0,
        help="Wanted operations per second for each GiB; 0 means none. "
        "Extra spec: kumo:desired_iops_per_gb.",
    ),
    cfg.IntOpt(
        "kioxia_max_bw_per_gb",
        default=0,
        min=0,
        help="Upper limit of bandwidth in KB/s for each GiB; 0 means no limit. The in-tree "
        "driver's help says B/s, but both drivers send the number as it is and the unit of the "
        "API is KB/s. Extra spec: kumo:max_bw_per_gb.",
    ),
    cfg.IntOpt(
        "kioxia_desired_bw_per_gb",
        default=0,
        min=0,
        help="Wanted bandwidth in KB/s for each GiB; 0 means none. See kioxia_max_bw_per_gb for "
        "the unit. Extra spec: kumo:desired_bw_per_gb.",
    ),
    cfg.BoolOpt(
        "kioxia_same_rack_allowed",
        default=False,
        help="Whether two replicas of a volume may be in one rack. "
        "Extra spec: kumo:same_rack_allowed.",
    ),
    cfg.IntOpt(
        "kioxia_block_size",
        default=4096,
        help="Logical block size of a volume in bytes, 512 or 4096. Extra spec: kumo:block_size.",
    ),
    cfg.BoolOpt(
        "kioxia_writable",
        default=False,
        help="Whether a KumoScale provisioner makes volumes from snapshots writable. With a Kumo "
        "provisioner they always are, whatever is set here.",
    ),
    cfg.StrOpt(
        "kioxia_provisioning_type",
        default="THICK",
        choices=[
            ("THICK", "The whole size is set aside when the volume is made"),
            ("THIN", "Space is taken when it is written"),
        ],
        help="Provisioning of a new volume. "
        "Extra specs: kumo:provisioning_type, or Cinder's own provisioning:type.",
    ),
    cfg.IntOpt(
        "kioxia_vol_reserved_space_percentage",
        default=0,
        min=0,
        max=1000,
        help="Space set aside for the snapshots of a new volume, in percent of its size. "
        "Extra spec: kumo:reserved_space_percentage.",
    ),
    cfg.IntOpt(
        "kioxia_snap_reserved_space_percentage",
        default=0,
        min=0,
        max=1000,
        help="Space set aside for a new snapshot, in percent of the size of its volume.",
    ),
    cfg.IntOpt(
        "kioxia_snap_vol_reserved_space_percentage",
        default=0,
        min=0,
        max=1000,
        help="Space set aside for a writable volume made from a snapshot, in percent of the size "
        "of the snapshot's volume.",
    ),
    cfg.IntOpt(
        "kioxia_max_replica_down_time",
        default=0,
        min=0,
        help="Minutes that a replica may be missing before another one takes its place; 0 means "
        "it is never replaced. Extra spec: kumo:max_replica_down_time.",
    ),
    cfg.BoolOpt(
        "kioxia_span_allowed",
        default=True,
        help="Whether a replica may span several SSDs of its node. Extra spec: kumo:span_allowed.",
    ),
    cfg.BoolOpt(
        "kioxia_snap_vol_span_allowed",
        default=True,
        help="Whether a volume made from a snapshot may span several SSDs of its node.",
    ),
]

KUMO_OPTS = [
    cfg.ListOpt(
        "kumo_urls",
        default=[],
        help="URLs of the provisioner, https://host:port, where one of them may be away: the next "
        f"one is tried. Port {DEFAULT_PORT} if none is given; an IPv6 address stands in brackets. "
        "If empty, kioxia_url is used.",
    ),
    cfg.StrOpt(
        "kumo_token_file",
        help="File with the bearer token for the provisioner. It is read again at every call, so "
        "the token can be changed without a restart.",
    ),
    cfg.StrOpt(
        "kumo_ca_file",
        help="PEM file with the CA that the provisioner's certificate is verified with. If unset, "
        "the certificates in kioxia_cafile are used, and the CAs of the system if that is unset "
        "too. Verification cannot be switched off.",
    ),
    cfg.FloatOpt(
        "kumo_request_budget",
        default=120.0,
        min=5.0,
        max=3600.0,
        help="Seconds that one operation may take with the provisioner, all repeats and other "
        "endpoints included. Shorten it only if a hanging provisioner should fail a volume sooner.",
    ),
    cfg.ListOpt(
        "kumo_accept_stale",
        default=[],
        help="Ids of volumes with several replicas that may be attached although the replica with "
        "the last writes cannot be reached: these writes are lost then. For a volume whose storage "
        "node is lost for good; take the id out again once the volume was attached. Each use is "
        "logged.",
    ),
]

OPTS = KIOXIA_OPTS + KUMO_OPTS


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """For the sample generator: the options of a backend's section."""
    return [("backend_defaults", list(OPTS))]


def register(configuration: cinder_configuration.Configuration) -> None:
    """Add the options to a backend's configuration, the token secret in any case."""
    configuration.append_config_values(OPTS)
    for group in {configuration.config_group, cinder_configuration.SHARED_CONF_GROUP} - {None}:
        # The in-tree driver may have come first, with a token that is not secret.
        cinder_configuration.CONF._get_opt_info("kioxia_token", group)["opt"].secret = True


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """How to reach the provisioner. ``budget`` in seconds; ``token`` is read at every call."""

    urls: list[str]
    token: Callable[[], str] | None
    ca_file: str | None
    client_cert: str | None
    budget: float


def endpoint(
    configuration: cinder_configuration.Configuration,
    default_cafile: str = DEFAULT_KIOXIA_CAFILE,
) -> Endpoint:
    """Read and check the settings of the connection.

    :raises kumo_client.errors.ConfigError: naming the option that is wrong.
    """
    cafile = configuration.kioxia_cafile
    if not cafile and os.path.exists(default_cafile):
        cafile = default_cafile
    ca_file = configuration.kumo_ca_file or cafile
    for option, path in (("kioxia_cafile", cafile), ("kumo_ca_file", ca_file)):
        if path:
            _readable(option, path)
    return Endpoint(
        urls=list(_urls(configuration)),
        token=_token(configuration),
        ca_file=ca_file or None,
        client_cert=cafile if cafile and _has_key(cafile) else None,
        budget=configuration.kumo_request_budget,
    )


def _urls(configuration: Any) -> Iterator[str]:
    if configuration.kumo_urls:
        for url in configuration.kumo_urls:
            yield _url("kumo_urls", url)
    elif configuration.kioxia_url:
        # The in-tree driver speaks HTTPS whatever the scheme says.
        yield _url("kioxia_url", configuration.kioxia_url.replace("http://", "https://", 1))
    else:
        raise errors.ConfigError(
            "no provisioner is configured", way_out="Set kumo_urls in the backend's section"
        )


def _url(option: str, url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise errors.ConfigError(f"{option}: {url!r} is not a URL ({error})") from None
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise errors.ConfigError(
            f"{option}: {url!r} must have the form https://host:port",
            way_out="Put an IPv6 address in brackets",
        )
    if parts.username or parts.password:
        raise errors.ConfigError(f"{option} must not hold a user name or password")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{port}"


def _token(configuration: Any) -> Callable[[], str] | None:
    path, token = configuration.kumo_token_file, configuration.kioxia_token
    if path:
        _read_token(path)
        return lambda: _read_token(path)
    return (lambda: token) if token else None


def _read_token(path: str) -> str:
    _readable("kumo_token_file", path)
    token = pathlib.Path(path).read_text().strip()
    if not token:
        raise errors.ConfigError(f"kumo_token_file: {path} is empty")
    return token


def _readable(option: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise errors.ConfigError(f"{option}: {path} cannot be read: {error.strerror}") from None


def _has_key(path: str) -> bool:
    return b"PRIVATE KEY-----" in pathlib.Path(path).read_bytes()
