# SPDX-License-Identifier: Apache-2.0
"""Cinder: the config shared by api, scheduler and volume, and the three services."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lab.openstack import config, http, keystone, rabbitmq
from lab.openstack.service import Service, wsgi_argv

HOST = "kumo"
Backends = Mapping[str, Mapping[str, str]]

# What the log says when a driver cannot be loaded or fails its setup check; the process stays up.
# The first comes from the volume manager, the second from cinder-volume's main.
DRIVER_FAILED = ("Failed to initialize driver", " failed to start.: ")


def sections(settings: config.Settings) -> config.Sections:
    """cinder.conf without backends."""
    root = settings.state_dir / "cinder"
    privsep = {"helper_command": str(config.BIN / "privsep-helper")}
    return config.merge(
        config.common_sections(),
        settings.database_section("cinder"),
        settings.authtoken_section("cinder"),
        {
            "DEFAULT": {
                "transport_url": settings.transport_url,
                "auth_strategy": "keystone",
                "host": HOST,
                "my_ip": settings.address,
                "api_paste_config": str(config.ETC / "cinder/api-paste.ini"),
                "resource_query_filters_file": str(config.ETC / "cinder/resource_filters.json"),
                "rootwrap_config": str(config.ETC / "cinder/rootwrap.conf"),
                "state_path": str(root),
                "glance_api_servers": settings.image_url,
                "allowed_direct_url_schemes": [],
                "image_conversion_dir": str(root / "conversion"),
                "default_volume_type": "__DEFAULT__",
                **{f"quota_{kind}": -1 for kind in ("volumes", "snapshots", "gigabytes", "groups")},
                "report_interval": 5,
                "backend_stats_polling_interval": 10,
            },
            "coordination": {"backend_url": f"file://{root}/coordination"},
            "oslo_concurrency": {"lock_path": str(root / "locks")},
            "oslo_messaging_rabbit": {"rabbit_retry_interval": 1, "rabbit_retry_backoff": 1},
            # The lab runs as root: the helper of privsep is started without sudo.
            "cinder_sys_admin": dict(privsep),
            "privsep_osbrick": dict(privsep),
        },
    )


def backend_sections(backends: Backends) -> config.Sections:
    """The sections that turn ``backends`` (section name to options) on."""
    enabled: config.Sections = {"DEFAULT": {"enabled_backends": list(backends)}}
    named = {name: {"volume_backend_name": name, **options} for name, options in backends.items()}
    return {**enabled, **{name: dict(options) for name, options in named.items()}}


def volume_config(
    settings: config.Settings,
    backends: Backends,
    overrides: config.Sections | None = None,
) -> str:
    """The complete text of a cinder.conf for cinder-volume with ``backends``."""
    parts = (sections(settings), backend_sections(backends), overrides or {})
    return config.render_ini(config.merge(*parts))


def write_config(settings: config.Settings) -> Path:
    """Write cinder.conf and make its directories; return the config file."""
    for name in ("locks", "coordination", "conversion", "volumes", "conf.d"):
        settings.directory(f"cinder/{name}")
    path = settings.state_dir / "cinder/cinder.conf"
    return config.write_private(path, config.render_ini(sections(settings)))


def config_args(settings: config.Settings, file_name: str = "cinder.conf") -> list[str]:
    """Options naming the config; a config-dir of our own keeps /etc/cinder out of it."""
    root = settings.state_dir / "cinder"
    return ["--config-file", str(root / file_name), "--config-dir", str(root / "conf.d")]


def api(settings: config.Settings) -> Service:
    """The block storage API."""
    url = f"http://{settings.address}:{config.CINDER_PORT}/healthcheck"
    address, args = settings.address, config_args(settings)
    return Service(
        "cinder-api",
        wsgi_argv("cinder.wsgi.api", address, config.CINDER_PORT, 8, *args),
        lambda: http.is_ok(url),
        config.service_environment(settings),
    )


def scheduler(settings: config.Settings) -> Service:
    """The scheduler; ready when it consumes its queue (a cast to a missing queue is lost)."""
    return Service(
        "cinder-scheduler",
        [sys.executable, str(config.BIN / "cinder-scheduler"), *config_args(settings)],
        lambda: rabbitmq.consumers(settings, "cinder-scheduler") > 0,
        config.service_environment(settings),
    )


def volume(settings: config.Settings, backends: Backends) -> Service:
    """cinder-volume; ready when the scheduler knows a pool of every backend."""
    path = settings.state_dir / "cinder/cinder-volume.conf"
    config.write_private(path, volume_config(settings, backends))

    def ready() -> bool:
        # A backend's queue has a consumer once its driver is set up; the scheduler may remember
        # the pools of an earlier process of the same name.
        hosts = {f"{HOST}@{name}" for name in backends}
        taken = (rabbitmq.consumers(settings, f"cinder-volume.{host}") for host in hosts)
        return all(taken) and hosts <= reporting_backends(settings)

    return Service(
        "cinder-volume",
        [
            sys.executable,
            str(config.BIN / "cinder-volume"),
            *config_args(settings, "cinder-volume.conf"),
        ],
        ready,
        config.service_environment(settings),
        DRIVER_FAILED,
    )


def reporting_backends(settings: config.Settings) -> set[str]:
    """The ``host@backend`` names whose capacity the scheduler knows.

    :raises OSError: cinder or keystone could not be asked (requests.RequestException).
    """
    headers = {"X-Auth-Token": keystone.token(settings)}
    answer = http.request(
        "GET", f"{settings.volume_url}/scheduler-stats/get_pools", headers=headers
    )
    return {pool["name"].partition("#")[0] for pool in answer.json()["pools"]}
