# SPDX-License-Identifier: Apache-2.0
"""A private RabbitMQ broker: Debian's rabbitmq-server, never its system service."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lab.errors import PreflightError
from lab.openstack import config
from lab.openstack.service import Service

# The wrapper in /usr/sbin changes user and directory for the system service; this does not.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# A long name with an address needs no resolver, so the node starts in a bare namespace.
NODE = "rabbit@127.0.0.1"
DISTRIBUTION_PORT = 25672
EPMD_PORT = 4369

# One scheduler that never spins, and small tables: this broker carries a few dozen queues.
_VM_FLAGS = "+P 65536 +t 1048576 +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"
# Named by Erlang itself before RabbitMQ starts, which saves it a second Erlang VM to look for
# epmd; the fixed port and address keep the node's own traffic on loopback.
_DISTRIBUTION_FLAGS = (
    f"-name {NODE} -kernel inet_dist_use_interface {{127,0,0,1}}"
    f" inet_dist_listen_min {DISTRIBUTION_PORT} inet_dist_listen_max {DISTRIBUTION_PORT}"
)


class BrokerMissingError(PreflightError):
    """RabbitMQ is not installed; the message says what to install."""


def library_tree(settings: config.Settings, server: Path = SERVER) -> Path:
    """A copy by links of the server's tree without its optional plugins; return its script folder.

    Erlang looks for every module in every library in turn, so the forty plugins that this broker
    does not use would more than double its start-up time.

    :raises BrokerMissingError: there is no server.
    """
    if not server.exists():
        raise BrokerMissingError(f"{server} not found", "Install the package rabbitmq-server.")
    installed = server.resolve().parent.parent
    tree = settings.directory("rabbitmq/tree")
    for name in ("sbin", "escript"):
        _link(tree / name, installed / name)
    plugins = settings.directory("rabbitmq/tree/plugins")
    for library in (installed / "plugins").iterdir():
        if not library.name.startswith("rabbitmq_") or "_prelaunch-" in library.name:
            _link(plugins / library.name, library)
    return tree / "sbin"


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def render_conf(settings: config.Settings) -> str:
    """rabbitmq.conf; its user is made at the first start of an empty database."""
    return "\n".join(
        [
            f"listeners.tcp.lab = {settings.address}:{config.RABBIT_PORT}",
            "default_user = kumo",
            f"default_pass = {settings.passwords['rabbit']}",
            "loopback_users = none",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
            "disk_free_limit.absolute = 16MB",
            "vm_memory_high_watermark.absolute = 256MB",
            "",
        ]
    )


def environment(settings: config.Settings) -> dict[str, str]:
    """Environment of the broker; every path is below the stack's directory."""
    root = settings.directory("rabbitmq")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
    return {
        **inherited,
        "HOME": str(settings.directory("rabbitmq/home")),
        "RABBITMQ_SCRIPTS_DIR": str(root / "tree/sbin"),
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_USE_LONGNAME": "true",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(settings.directory("rabbitmq/mnesia")),
        "RABBITMQ_LOG_BASE": str(settings.directory("rabbitmq/log")),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(settings.directory("rabbitmq/generated")),
        "RABBITMQ_SCHEMA_DIR": str(settings.directory("rabbitmq/schema")),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(root / "feature_flags"),
        "RABBITMQ_DIST_PORT": str(DISTRIBUTION_PORT),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(EPMD_PORT),
        # RabbitMQ starts epmd as a daemon, once a minute if need be (rabbit_epmd_monitor), and
        # the daemon would outlive it. This reaches the Erlang VMs that it starts for that, too.
        "ERL_AFLAGS": "-start_epmd false",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_SERVER_ERL_ARGS": _VM_FLAGS,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _DISTRIBUTION_FLAGS,
        # The start script then replaces itself by the Erlang VM instead of minding it, so that a
        # signal reaches the broker (rabbitmq-server, last lines).
        "detached": "1",
    }


def service(settings: config.Settings) -> Service:
    """The broker; ready when it takes connections."""
    root = settings.directory("rabbitmq")
    library_tree(settings)
    config.write_private(root / "rabbitmq.conf", render_conf(settings))
    config.write_private(root / "enabled_plugins", "[].\n")

    address = settings.address
    return Service(
        "rabbitmq",
        [str(SERVER)],
        lambda: _listens(address, config.RABBIT_PORT),
        environment(settings),
    )


def epmd(settings: config.Settings) -> Service:
    """Erlang's port mapper in the foreground, to be ready before the broker starts."""
    return Service(
        "epmd",
        ["epmd", "-address", "127.0.0.1", "-port", str(EPMD_PORT)],
        lambda: _listens("127.0.0.1", EPMD_PORT),
        environment(settings),
    )


def _listens(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=2):
        return True


def consumers(settings: config.Settings, queue: str) -> int:
    """Number of consumers of ``queue``; 0 when the queue does not exist yet.

    :raises OSError: the broker could not be asked.
    """
    import amqp  # type: ignore[import-untyped]

    connection = amqp.Connection(
        f"{settings.address}:{config.RABBIT_PORT}",
        userid="kumo",
        password=settings.passwords["rabbit"],
        connect_timeout=2,
    )
    try:
        connection.connect()
        return int(connection.channel().queue_declare(queue, passive=True).consumer_count)
    except amqp.exceptions.NotFound:
        return 0
    except amqp.exceptions.AMQPError as error:
        raise OSError(f"rabbitmq did not answer about queue {queue}: {error}") from error
    finally:
        connection.collect()
