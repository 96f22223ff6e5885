# SPDX-License-Identifier: Apache-2.0
"""Options of the agent, in ``/etc/kumo/agent.conf``; those of the connector are read there, too.

Nothing reads a global configuration object: :func:`load` makes one and it is passed on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from os_brick_nvmeof import conf as connector_conf
from os_brick_nvmeof.agent.model import Limits
from os_brick_nvmeof.props import PLAIN, REPLICATED

GROUP = "kumo_agent"
DEFAULT_FILE = "/etc/kumo/agent.conf"

_PROVISIONER = [
    cfg.StrOpt(
        "vendor",
        default="kumo",
        help="Maker of the storage: the name of an entry point in 'kumo.agent.vendors'.",
    ),
    cfg.ListOpt(
        "provisioner_urls",
        default=[],
        help="Addresses of the provisioner, 'https://host:port', in the order to try.",
    ),
    cfg.StrOpt(
        "provisioner_token_file",
        default="/etc/kumo/agent.token",
        help="File with the bearer token for the provisioner, of role storage, which "
        "nobody but 'user' (or root, without it) should be able to read; read anew for each call.",
    ),
    cfg.StrOpt(
        "provisioner_ca_file",
        help="PEM file with the authority of the provisioner's certificate. Unset: the system's.",
    ),
    cfg.StrOpt(
        "provisioner_client_cert",
        help="PEM file with a client certificate and its key, if the provisioner asks for one.",
    ),
    cfg.FloatOpt(
        "provisioner_timeout",
        default=20.0,
        min=1.0,
        help="Seconds that one call to the provisioner may take, its repeats included.",
    ),
]
_HOST = [
    cfg.StrOpt(
        "host_id",
        help="Id under which volumes are published to this host. Unset: what os-brick tells as "
        "'uuid', the UUID of the root file system.",
    ),
    cfg.StrOpt(
        "host_name",
        help="Name of this host for people. Unset: the system's host name.",
    ),
    cfg.StrOpt(
        "lock_path",
        help="Directory of os-brick's locks: the same as '[os_brick] lock_path' (or "
        "'[oslo_concurrency] lock_path') of nova-compute and cinder-volume on this host. It must "
        "be set: attach, detach and healing exclude each other there.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/kumo-agent",
        help="Directory of what the agent has to know after a restart: since when legs are lost, "
        "what was asked for, and the provisioner's last answer.",
    ),
    cfg.StrOpt(
        "run_dir",
        default="/run/kumo-agent",
        help="Directory of what others may read: status.json is what 'kumo-agent status' shows.",
    ),
]
_USER = [
    cfg.StrOpt(
        "user",
        help="User that the agent runs as: the one that nova-compute runs as on this host, whose "
        "locks it shares. The agent is started as root, leaves the few calls that need root to a "
        "daemon of its own, and becomes this user without any capability. 'root': it stays root "
        "and does everything itself. Unset: the same, with a warning.",
    ),
    cfg.StrOpt(
        "group",
        help="Group that the agent runs as, with the other groups of its user. Unset: the user's "
        "own.",
    ),
]
_ROUNDS = [
    cfg.FloatOpt(
        "look_interval",
        default=30.0,
        min=0.5,
        help="Seconds between two looks at this host when nothing happens. Events of the kernel "
        "and of the provisioner lead to one at once.",
    ),
    cfg.FloatOpt(
        "busy_interval",
        default=1.0,
        min=0.1,
        help="Seconds between two looks while a volume is not as it should be, and between two "
        "glances at the states of connections.",
    ),
    cfg.FloatOpt(
        "pull_interval",
        default=30.0,
        min=1.0,
        help="Seconds between two questions to the provisioner when nothing happens.",
    ),
    cfg.IntOpt(
        "probe_interval",
        default=10,
        min=1,
        help="Seconds between two signs of life to the provisioner. It takes a host that misses "
        "three for down.",
    ),
    cfg.IntOpt(
        "parallel",
        default=16,
        min=1,
        help="Volumes that are worked on at the same time.",
    ),
]
_HEALING = [
    cfg.FloatOpt(
        "fail_after",
        default=5.0,
        min=0.5,
        help="Seconds without a live path after which the agent takes a leg out of its array "
        "itself, if another one is in sync. The kernel does so on the first write that fails: so "
        "this should not be less than replicated_fast_io_fail.",
    ),
    cfg.FloatOpt(
        "node_silence",
        default=2.0,
        min=0.0,
        help="Seconds for which a storage node answers none of the agent's probes and completes no "
        "I/O that waits for it, until the agent ends the connections to it, so that the arrays go "
        "on with their other legs at once. 0: never; then the kernel's own time-outs decide. A "
        "node that stands still for longer than this is taken for dead, and its legs are put back "
        "when it goes on.",
    ),
    cfg.FloatOpt(
        "node_probe_interval",
        default=0.5,
        min=0.1,
        help="Seconds between two probes of each portal that is in use: a TCP connection that is "
        "ended at once.",
    ),
    cfg.FloatOpt(
        "spare_wait",
        default=60.0,
        min=1.0,
        help="Seconds that a new leg may take to appear before it is reported as Missing.",
    ),
    cfg.FloatOpt(
        "move_wait",
        default=300.0,
        min=1.0,
        help="Seconds that the new leg of a migration may be lost before the migration fails.",
    ),
    cfg.FloatOpt(
        "ask_again",
        default=120.0,
        min=10.0,
        help="Seconds before a replacement is asked for again when the first answer was lost.",
    ),
    cfg.IntOpt(
        "resync_min",
        default=0,
        min=0,
        help="KB/s that the synchronisation of an array gets at least (md/sync_speed_min). "
        "0: as the kernel has it.",
    ),
    cfg.IntOpt(
        "resync_max",
        default=0,
        min=0,
        help="KB/s that the synchronisation of an array gets at most (md/sync_speed_max). "
        "0: as the kernel has it.",
    ),
]
_SEEN = [
    cfg.HostAddressOpt(
        "metrics_address",
        default="127.0.0.1",
        help="Address on which Prometheus metrics are served.",
    ),
    cfg.PortOpt("metrics_port", default=0, help="Port of the metrics. 0: none are served."),
    cfg.BoolOpt("log_json", default=False, help="Log one JSON object for each line."),
]
OPTS = [*_PROVISIONER, *_HOST, *_USER, *_ROUNDS, *_HEALING, *_SEEN]


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """For oslo.config's generator: the agent's own, beside which it has the connector's."""
    return [(GROUP, OPTS)]


def load(files: Sequence[str]) -> cfg.ConfigOpts:
    """Read configuration files; without one, the default file if it is there.

    :raises oslo_config.cfg.Error: a file or a value cannot be used.
    """
    made = cfg.ConfigOpts()
    made.register_opts(OPTS, group=GROUP)
    connector_conf.register(made)
    log.register_options(made)
    chosen = list(files) or [name for name in [DEFAULT_FILE] if os.path.exists(name)]
    made([], project="kumo-agent", default_config_files=chosen, default_config_dirs=[])
    return made


def limits(conf: cfg.ConfigOpts) -> Limits:
    """What the planner has to keep to."""
    chosen = conf[GROUP]
    return Limits(
        time_outs={name: connector_conf.time_outs(conf, name) for name in (PLAIN, REPLICATED)},
        fail_after=chosen.fail_after,
        spare_wait=chosen.spare_wait,
        move_wait=chosen.move_wait,
        ask_again=chosen.ask_again,
        silence=chosen.node_silence,
        speed_min=chosen.resync_min,
        speed_max=chosen.resync_max,
    )
