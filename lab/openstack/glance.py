# SPDX-License-Identifier: Apache-2.0
"""Glance: its config and its service, with a file store."""

from __future__ import annotations

from pathlib import Path

from lab.openstack import config, http
from lab.openstack.service import Service, wsgi_argv


def sections(settings: config.Settings) -> config.Sections:
    """glance-api.conf."""
    root = settings.state_dir / "glance"
    return config.merge(
        config.common_sections(),
        settings.database_section("glance"),
        settings.authtoken_section("glance"),
        {
            "DEFAULT": {
                "enabled_backends": "file:file",
                "worker_self_reference_url": settings.image_url,
                "node_staging_uri": f"file://{root}/staging",
                "image_cache_dir": str(root / "cache"),
            },
            "paste_deploy": {
                "flavor": "keystone",
                "config_file": str(config.ETC / "glance/glance-api-paste.ini"),
            },
            "glance_store": {"default_backend": "file"},
            "file": {"filesystem_store_datadir": str(root / "images")},
            "os_glance_staging_store": {"filesystem_store_datadir": str(root / "staging")},
            "os_glance_tasks_store": {"filesystem_store_datadir": str(root / "tasks")},
            "oslo_concurrency": {"lock_path": str(root / "locks")},
            "wsgi": {"task_pool_threads": 2},
        },
    )


def write_config(settings: config.Settings) -> Path:
    """Write glance-api.conf and make its directories; return the config file."""
    for name in ("images", "staging", "tasks", "cache", "locks"):
        settings.directory(f"glance/{name}")
    path = settings.state_dir / "glance/glance-api.conf"
    return config.write_private(path, config.render_ini(sections(settings)))


def service(settings: config.Settings) -> Service:
    """The image API."""
    write_config(settings)
    env = {
        **config.service_environment(settings),
        "OS_GLANCE_CONFIG_DIR": str(settings.state_dir / "glance"),
    }
    url = f"{settings.image_url}/healthcheck"
    return Service(
        "glance-api",
        wsgi_argv("glance.wsgi.api", settings.address, config.GLANCE_PORT, 4),
        lambda: http.is_ok(url),
        env,
    )
