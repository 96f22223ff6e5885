# SPDX-License-Identifier: Apache-2.0
"""Options of the provisioner.

Nothing reads a global configuration object: :func:`load` makes one and it is passed on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from kumo_client import errors

DEFAULT_FILE = "/etc/kumo/provisioner.conf"
DEFAULT_PORT = 8090

SERVER_OPTS = [
    cfg.HostAddressOpt(
        "listen_address",
        default="0.0.0.0",
        help="Address on which the API listens. '::' listens on IPv6 (and IPv4).",
    ),
    cfg.PortOpt("listen_port", default=DEFAULT_PORT, help="TCP port of the API (HTTPS)."),
    cfg.StrOpt(
        "tls_cert_file",
        default="/etc/kumo/provisioner.pem",
        help="PEM file with the certificate of the API, followed by intermediate certificates. "
        "Clients verify it, so its names must cover every address that clients use.",
    ),
    cfg.StrOpt(
        "tls_key_file",
        help="PEM file with the private key. Unset: the key is in 'tls_cert_file'.",
    ),
    cfg.StrOpt(
        "token_file",
        default="/etc/kumo/tokens.json",
        help="File with the digests and roles of the bearer tokens that may use the API, as "
        "'kumo-provisioner init' makes it. Read again when it changes.",
    ),
    cfg.StrOpt(
        "jwt_key_file",
        help="File with the keys that sign the tokens of 'POST /tokens', as 'kumo-provisioner "
        "init' makes it. Several provisioners share one. It is read again when it changes. "
        "Unset: there are only the tokens of 'token_file'.",
    ),
    cfg.FloatOpt(
        "token_leeway",
        default=30.0,
        min=0.0,
        max=600.0,
        help="Seconds by which the clocks of those who make and who check tokens may differ.",
    ),
    cfg.StrOpt(
        "client_ca_file",
        help="PEM file with the authority of client certificates; see 'client_certificates'.",
    ),
    cfg.StrOpt(
        "client_certificates",
        default="no",
        choices=[
            ("no", "clients are not asked for a certificate"),
            ("optional", "a client may show one; a wrong one is refused"),
            ("required", "only clients with a certificate of 'client_ca_file' are served"),
        ],
        help="Certificates of clients, checked besides their tokens.",
    ),
    cfg.IntOpt(
        "workers",
        default=40,
        min=4,
        max=1000,
        help="Most requests that are worked on at the same time. Raise it when nodes are slow "
        "and requests queue up.",
    ),
    cfg.IntOpt(
        "lock_timeout",
        default=8,
        min=0,
        max=50,
        help="Seconds a call waits for another call on the same volume before it answers Busy.",
    ),
    cfg.FloatOpt(
        "shutdown_grace",
        default=0.0,
        min=0.0,
        max=30.0,
        help="Seconds for which the API goes on when the program is told to end, while GET /readyz "
        "says already that it is not ready. Behind a balancer: a little longer than it takes the "
        "balancer to notice that.",
    ),
]

DATABASE_OPTS = [
    cfg.StrOpt(
        "connection",
        default="sqlite:////var/lib/kumo/provisioner.db",
        secret=True,
        help="SQLAlchemy URL of the database. The directory of an SQLite file must exist, be on "
        "local disk and belong to the user of the service. The schema of SQLite is "
        "brought up to date at each start, that of others by 'kumo-provisioner db upgrade'. "
        "Several instances need PostgreSQL (postgresql+psycopg://user:password@host/name) or "
        "MariaDB (mysql+pymysql://user:password@host/name).",
    ),
    cfg.IntOpt(
        "max_connections",
        default=30,
        min=10,
        help="Most connections of one instance to PostgreSQL or MariaDB. The server must allow "
        "that many for each instance; raise both when requests fail because all connections are "
        "in use.",
    ),
]

INSTANCES_OPTS = [
    cfg.FloatOpt(
        "heartbeat_interval",
        default=2.0,
        min=0.1,
        help="Seconds between two signs of life of an instance that shares its database with "
        "others.",
    ),
    cfg.FloatOpt(
        "dead_after",
        default=12.0,
        min=0.5,
        help="Seconds without a sign of life after which an instance counts as dead and others "
        "take its work over. At least four times 'heartbeat_interval'; the same for all instances. "
        "Smaller is faster, but an instance that only stands still for that long loses its work.",
    ),
]

NODES_OPTS = [
    cfg.StrOpt(
        "token_file",
        default="/etc/kumo/node.token",
        help="File with the bearer token that the storage nodes accept.",
    ),
    cfg.StrOpt(
        "ca_file",
        help="PEM file with the authority that signed the certificates of the nodes. Unset: the "
        "authorities that the system trusts.",
    ),
    cfg.FloatOpt(
        "connect_timeout",
        default=3.0,
        min=0.1,
        help="Seconds a connection to a node may take to come up.",
    ),
    cfg.FloatOpt(
        "budget",
        default=20.0,
        min=0.5,
        max=25.0,
        help="Seconds a call to a node may take in all, repetitions included. A request of a "
        "client may need two of them in a row and must end within the 60 s that "
        "existing clients wait, hence the limit.",
    ),
    cfg.FloatOpt(
        "probe_budget",
        default=5.0,
        min=0.5,
        help="Seconds a node has to answer a probe.",
    ),
    cfg.IntOpt(
        "parallel",
        default=32,
        min=1,
        help="Most calls to nodes at the same time, besides one of each request.",
    ),
]

PLACEMENT_OPTS = [
    cfg.FloatOpt(
        "thin_oversubscription",
        default=4.0,
        min=1.0,
        help="A THIN volume is charged with its size divided by this number, a THICK one with "
        "its full size; the sum of the charges on a node never exceeds its pool. 1.0 "
        "promises as little for THIN as for THICK volumes.",
    ),
    cfg.IntOpt(
        "snapshot_reserve_percent",
        default=100,
        min=0,
        max=100,
        help="Percent of its volume's charge that a snapshot is charged with at least. Only with "
        "100 the pool can hold everything even if each volume is rewritten after its "
        "snapshot; less sells more space and needs watching of the fill level.",
    ),
    cfg.IntOpt(
        "max_fill_percent",
        default=90,
        min=1,
        max=100,
        help="Percent of a pool that may really be occupied, whatever was promised; a pool that is "
        "fuller gets nothing new. Lower it when THIN volumes fill up faster than disks are "
        "added.",
    ),
    cfg.IntOpt(
        "hot_percent",
        default=85,
        min=1,
        help="Percent of the operations or the bandwidth that a pool or a node delivers that may "
        "have been in use in the last minutes; what is busier gets no new volumes. It counts "
        "where it is known what the pool delivers ('kumo-node calibrate', or declared).",
    ),
    cfg.FloatOpt(
        "use_max_age",
        default=300.0,
        min=1.0,
        help="Seconds for which the use that a node told counts in placement.",
    ),
    cfg.FloatOpt(
        "capacity_weight",
        default=1.0,
        min=0.0,
        help="How much the part of a pool's capacity that is sold or really occupied, whichever "
        "is more, counts when the least used pool is looked for. 0 ignores it.",
    ),
    cfg.FloatOpt(
        "guarantee_weight",
        default=1.0,
        min=0.0,
        help="How much the sold part of what a pool delivers counts, likewise.",
    ),
    cfg.FloatOpt(
        "use_weight",
        default=1.0,
        min=0.0,
        help="How much the use of the last minutes counts, likewise.",
    ),
    cfg.IntOpt(
        "assumed_iops",
        default=100_000,
        min=0,
        help="Operations per second that a pool counts as delivering when the least used pool is "
        "looked for and nobody knows what it delivers, so that a busy pool comes after an idle "
        "one. Nothing is guaranteed and nothing is refused because of it. 0: use does not "
        "count there.",
    ),
    cfg.IntOpt(
        "assumed_bw",
        default=1_000_000,
        min=0,
        help="KB/s that such a pool counts as delivering, likewise.",
    ),
    cfg.IntOpt(
        "attempts",
        default=8,
        min=1,
        help="How often a placement is tried when others take the same room at the same time. "
        "Raise it when clients are told so with many instances on a nearly full fleet.",
    ),
]

RECONCILE_OPTS = [
    cfg.FloatOpt(
        "interval",
        default=30.0,
        min=0.2,
        help="Seconds between two rounds that finish or undo what was cut off, and compare those "
        "nodes with the record that have changed.",
    ),
    cfg.FloatOpt(
        "full_interval",
        default=600.0,
        min=0.2,
        help="Seconds after which a node is compared with the record although it has not changed.",
    ),
    cfg.IntOpt(
        "garbage_grace_days",
        default=7,
        min=0,
        help="Days after which an object that a node holds for us and no record knows is removed. "
        "0: never. Nothing is removed while a node shows many of them; set 0 before the database "
        "is restored from an old copy.",
    ),
    cfg.FloatOpt(
        "probe_interval",
        default=10.0,
        min=0.2,
        help="Seconds between two probes of each node.",
    ),
    cfg.FloatOpt(
        "probe_interval_alive",
        default=60.0,
        min=0.2,
        help="Seconds between two probes of a node that sends heartbeats in time and answered its "
        "last probe. Only a probe shows that the node can be called.",
    ),
    cfg.FloatOpt(
        "heartbeat_max_age",
        default=45.0,
        min=1.0,
        help="Seconds for which a heartbeat of a node counts. More than 'refresh_interval' and "
        "than the interval in which nodes send them.",
    ),
    cfg.FloatOpt(
        "refresh_interval",
        default=20.0,
        min=0.0,
        help="Seconds for which figures of a node that change all the time (fill, use, the times "
        "of probe and heartbeat) are left as they are in the database. What matters for "
        "decisions is written at once.",
    ),
    cfg.IntOpt(
        "probe_failures",
        default=3,
        min=1,
        help="Probes in a row that must fail until a node counts as Unavailable and gets no new "
        "volumes.",
    ),
    cfg.IntOpt(
        "removal_memory_days",
        default=90,
        min=1,
        help="Days for which the uuid of a removed object is remembered. An object of that uuid "
        "that a node shows later is removed at once; any other unknown one is garbage.",
    ),
]

SNAPSHOTS_OPTS = [
    cfg.FloatOpt(
        "hold_seconds",
        default=10.0,
        min=1.0,
        max=20.0,
        help="Longest time in seconds for which the agent of a host may hold the writes to an "
        "attached replicated volume while its snapshot is taken. Usually it takes a small part "
        "of a second; the limit counts when a node or the provisioner is in trouble.",
    ),
    cfg.FloatOpt(
        "hold_wait",
        default=3.0,
        min=0.0,
        max=8.0,
        help="Seconds to wait for the agent to hold the writes, and again for its word that they "
        "were held throughout. Without it the snapshot is made of one replica, and the other "
        "replicas of a volume made from it have to be synchronised.",
    ),
]

TASKS_OPTS = [
    cfg.FloatOpt(
        "poll_interval",
        default=2.0,
        min=0.1,
        help="Seconds between two looks at copies of replicas between nodes, and at drains.",
    ),
    cfg.IntOpt(
        "drain_parallel",
        default=4,
        min=1,
        max=64,
        help="Most replicas that leave a node at the same time while it is drained.",
    ),
    cfg.FloatOpt(
        "host_timeout",
        default=900.0,
        min=10.0,
        help="Seconds after which a task fails of which the agent of its host has told nothing.",
    ),
    cfg.IntOpt(
        "memory_days",
        default=7,
        min=1,
        help="Days for which tasks that have ended are listed.",
    ),
]

EVENTS_OPTS = [
    cfg.IntOpt(
        "keep",
        default=200000,
        min=100,
        help="Most events that are kept. A reader that was away for longer is told that it missed "
        "some.",
    ),
    cfg.IntOpt("keep_days", default=30, min=1, help="Days for which events are kept."),
    cfg.FloatOpt(
        "poll_interval",
        default=1.0,
        min=0.05,
        help="Seconds between two looks for events of other instances while somebody waits for "
        "some. Those of the same instance are told at once.",
    ),
]

METRICS_OPTS = [
    cfg.BoolOpt(
        "without_token",
        default=False,
        help="Answer GET /metrics to callers without a token, too. It names nodes and tenants, so "
        "only on a network that is not open to others.",
    ),
]

LOGGING_OPTS = [
    cfg.BoolOpt(
        "json",
        default=False,
        help="Write each log record as one line of JSON, with time, level, logger, request id, "
        "message and fields, as log collectors such as Loki take it.",
    ),
    cfg.BoolOpt(
        "access",
        default=False,
        help="Log each request: method, route, HTTP status, milliseconds and name of the caller.",
    ),
]

GROUPS = {
    "server": SERVER_OPTS,
    "metrics": METRICS_OPTS,
    "logging": LOGGING_OPTS,
    "database": DATABASE_OPTS,
    "instances": INSTANCES_OPTS,
    "nodes": NODES_OPTS,
    "placement": PLACEMENT_OPTS,
    "reconcile": RECONCILE_OPTS,
    "snapshots": SNAPSHOTS_OPTS,
    "tasks": TASKS_OPTS,
    "events": EVENTS_OPTS,
}


def list_opts() -> list[tuple[str | None, list[cfg.Opt]]]:
    """Entry point ``oslo.config.opts``."""
    return list(GROUPS.items())


def make() -> cfg.ConfigOpts:
    """A configuration object that knows the options and has read nothing yet."""
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    for group, options in GROUPS.items():
        conf.register_opts(options, group=group)
    return conf


def load(files: Sequence[str] = ()) -> cfg.ConfigOpts:
    """Read the configuration.

    :param files: configuration files; none means /etc/kumo/provisioner.conf.
    :raises ConfigError: when a file is missing or a value is wrong.
    """
    files = list(files) or [DEFAULT_FILE]
    conf = make()
    for path in files:
        if not os.access(path, os.R_OK):
            raise errors.ConfigError(
                f"the configuration file {path} cannot be read",
                way_out="name one with --config-file; 'kumo-provisioner init' makes one",
            )
    try:
        conf([], project="kumo-provisioner", default_config_files=files)
        for group, options in GROUPS.items():
            for option in options:
                getattr(getattr(conf, group), option.dest)
    except (cfg.Error, ValueError) as exc:
        raise errors.ConfigError(f"the configuration is wrong: {exc}") from exc
    if conf.instances.dead_after < 4 * conf.instances.heartbeat_interval:
        raise errors.ConfigError(
            "the configuration is wrong: [instances] dead_after must be at least four times "
            "heartbeat_interval"
        )
    return conf
