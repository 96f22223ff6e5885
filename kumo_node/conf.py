# SPDX-License-Identifier: Apache-2.0
"""Options of the storage node daemon.

All of them are in the group ``[DEFAULT]`` of ``/etc/kumo/node.conf``. Nothing reads a global
configuration object: :func:`load` makes one and it is passed on.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.common import Portal

DEFAULT_FILE = "/etc/kumo/node.conf"
DEFAULT_NVME_PORT = 4420
# Transport as written in the configuration -> (text on the wire, trtype of nvmet).
TRANSPORTS = {"tcp": ("TCP", "tcp"), "rdma": ("RoCEv2", "rdma"), "rocev2": ("RoCEv2", "rdma")}

OPTS = [
    cfg.HostAddressOpt(
        "listen_address",
        default="0.0.0.0",
        help="Address on which the management API listens. '::' listens on IPv6 (and IPv4). "
        "Set it to the address of the management network to keep the API off the data network.",
    ),
    cfg.PortOpt("listen_port", default=443, help="TCP port of the management API (HTTPS)."),
    cfg.StrOpt(
        "tls_cert_file",
        default="/etc/kumo/node.pem",
        help="PEM file with the certificate of the API, followed by intermediate certificates. "
        "Clients verify it, so its names must cover the address used to register this node.",
    ),
    cfg.StrOpt(
        "tls_key_file",
        help="PEM file with the private key. Unset: the key is in 'tls_cert_file'.",
    ),
    cfg.StrOpt(
        "token_file",
        default="/etc/kumo/node.token",
        help="File with the bearer tokens that may use the API, one a line: the token itself or "
        "'sha256:' and its hexadecimal digest. Keep it readable for root only.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/kumo-node",
        help="Directory of the node's own record of what it holds. It must survive reboots and "
        "belongs in the backup: without it the node does not touch its volumes.",
    ),
    cfg.StrOpt(
        "hostname",
        help="Name of the node as shown to operators. Unset: the system's host name.",
    ),
    cfg.ListOpt(
        "disks",
        default=[],
        help="Paths of the disks given to Kumo, best as /dev/disk/by-id/... names. Only these are "
        "ever touched. A disk added later is taken at the next start.",
    ),
    cfg.StrOpt(
        "pool_layout",
        default="disk",
        choices=[
            (
                "disk",
                "a volume group and a thin pool on each disk: a disk that fails takes only "
                "the replicas on it along",
            ),
            (
                "group",
                "one volume group and one thin pool over all disks: a replica may be larger "
                "than a disk, and a disk that fails takes all replicas of the node along",
            ),
        ],
        help="How the disks make pools. It counts when the first disk is taken; a node that has "
        "taken disks, or was set up before this option existed, keeps the layout it has.",
    ),
    cfg.ListOpt(
        "wipe_disks",
        default=[],
        help="Disks of 'disks' whose present contents may be destroyed, once, when they are taken "
        "over. A disk not named here is refused when it has any partition or signature.",
    ),
    cfg.ListOpt(
        "portals",
        default=[],
        help="Addresses where volumes are exported, as transport://address:port; transport is tcp "
        "or rdma, IPv6 addresses stand in brackets, the port defaults to 4420. Example: "
        "tcp://10.77.0.11:4420,rdma://10.78.0.11:4420",
    ),
    cfg.StrOpt(
        "volume_group",
        default="kumo",
        regex=r"[a-zA-Z0-9][a-zA-Z0-9_.]*",
        help="Name of the LVM volume group made on the disks. With a pool on each disk, the group "
        "of a disk has this name, an underscore and eight hexadecimal digits. Change it only "
        "before first use.",
    ),
    cfg.StrOpt(
        "pool",
        default="pool",
        regex=r"[a-zA-Z0-9][a-zA-Z0-9_.]*",
        help="Name of the thin pool in its group, and, with one pool over all disks, of the pool "
        "as the provisioner knows it. Change it only before first use.",
    ),
    cfg.IntOpt(
        "pool_chunk_kib",
        default=64,
        min=64,
        max=1024 * 1024,
        help="Allocation unit of the thin pool in KiB, a multiple of 64, fixed when the pool is "
        "made. Larger units make less metadata, smaller units cheaper snapshots. It is "
        "raised by itself when the metadata of the pool would exceed LVM's limit.",
    ),
    cfg.FloatOpt(
        "max_overprovision",
        default=20.0,
        min=1.0,
        help="Largest sum of volume and snapshot sizes, as a multiple of the pool's size. 1.0 "
        "refuses whatever could outgrow the pool.",
    ),
    cfg.FloatOpt(
        "pool_warn_percent",
        default=80.0,
        min=1.0,
        max=100.0,
        help="Above this fill level (percent of a pool's data or metadata space) the node tells of "
        "a problem.",
    ),
    cfg.FloatOpt(
        "pool_full_percent",
        default=95.0,
        min=1.0,
        max=100.0,
        help="New replicas and snapshots are refused when more of the pool's data or metadata "
        "space than this is used (percent).",
    ),
    cfg.FloatOpt(
        "pool_critical_percent",
        default=98.0,
        min=1.0,
        max=100.0,
        help="Above this fill level (percent) the pool is given its reserve.",
    ),
    cfg.FloatOpt(
        "pool_reserve_percent",
        default=1.0,
        min=0.0,
        max=50.0,
        help="Part of the disks (percent) that a pool leaves free when it is made or grown. It is "
        "given to the pool by itself above 'pool_critical_percent', so that writes go on while "
        "somebody makes room. A disk that joins an existing pool brings a new reserve; a pool "
        "on one disk has it once. 0 keeps none.",
    ),
    cfg.FloatOpt(
        "wear_warn_percent",
        default=90.0,
        min=1.0,
        help="The node tells of a problem when an NVMe disk says that this much of its life is "
        "used up (percent).",
    ),
    cfg.IntOpt(
        "smart_interval",
        default=300,
        min=10,
        help="Seconds between two looks at the SMART log of an NVMe disk. It needs nvme-cli; "
        "without it, wear is unknown.",
    ),
    cfg.StrOpt(
        "secure_delete",
        default="off",
        choices=[
            (
                "off",
                "the space is given back at once; a pool zeroes a block before it is used "
                "again, so that nobody reads what was on it",
            ),
            ("discard", "all of it is discarded first, so that the SSD knows that it is free"),
            ("zero", "what it holds is overwritten with zeros and then discarded"),
        ],
        help="How a deleted replica or snapshot is erased before its space is given back. Erasing "
        "goes on in the background: the call that deletes does not wait for it.",
    ),
    cfg.IntOpt(
        "max_io_queues",
        default=0,
        min=0,
        max=128,
        help="Most I/O queues a host may open to one subsystem; 0 leaves the kernel's limit.",
    ),
    cfg.IntOpt(
        "command_timeout",
        default=120,
        min=1,
        help="Seconds an LVM command may take before the call fails as unknown.",
    ),
    cfg.IntOpt(
        "lock_timeout",
        default=30,
        min=1,
        help="Seconds a call waits for another call on the same object before it answers Busy.",
    ),
    cfg.IntOpt(
        "restore_interval",
        default=15,
        min=1,
        help="Seconds between two rounds that look for something unfinished: an export on a "
        "portal whose address was not up yet, a call that was cut off.",
    ),
    cfg.IntOpt(
        "pool_interval",
        default=5,
        min=1,
        help="Seconds between two looks at the state and the fill level of the pools. They are "
        "looked at each second while one is fuller than 'pool_warn_percent'.",
    ),
    cfg.StrOpt(
        "throttle",
        default="auto",
        choices=[
            ("auto", "cap replicas when the kernel can; the node tells whether it does"),
            ("off", "never cap; the io controller stays free for others"),
            ("required", "do not start when the kernel cannot cap"),
        ],
        help="Whether the caps of storage classes (maxIOPSPerGB, maxBWPerGB) are kept on this "
        "node. It mounts the blkio controller of control groups version 1 on /run/kumo/blkio, "
        "which fails while a unit of systemd has an IO setting such as IOWeight, and makes such "
        "settings ineffective on this host.",
    ),
    cfg.IntOpt(
        "throttle_min_iops",
        default=200,
        min=0,
        help="Lowest cap that is set, in operations per second in each direction; a lower one is "
        "raised to it. A host whose queued commands take longer than 30 s resets its connection; "
        "each 64 KiB (pool_chunk_kib) of a command count as one operation.",
    ),
    cfg.IntOpt(
        "throttle_min_bw",
        default=10240,
        min=0,
        help="Lowest cap that is set, in KB/s in each direction; a lower one is raised to it, for "
        "the same reason.",
    ),
    cfg.IntOpt(
        "copy_parallel",
        default=2,
        min=1,
        help="Copies from replicas of other nodes that are under way at one time; others wait.",
    ),
    cfg.IntOpt(
        "copy_rate_mib",
        default=200,
        min=0,
        help="MiB/s of one such copy; 0 is no limit. What hosts do has no other precedence.",
    ),
    cfg.ListOpt(
        "disk_iops",
        default=[],
        help="Operations per second that disks deliver, as PATH=NUMBER with paths of 'disks', or a "
        "number for all of them. It wins over what 'kumo-node calibrate' measured. Guarantees "
        "(desiredIOPSPerGB) are sold up to it; when neither is known, none can be given.",
    ),
    cfg.ListOpt(
        "disk_bw",
        default=[],
        help="KB/s that disks deliver, in the same form.",
    ),
    cfg.IntOpt(
        "usage_interval",
        default=10,
        min=1,
        help="Seconds between two looks at how busy the disks are.",
    ),
    cfg.IntOpt(
        "usage_window",
        default=300,
        min=10,
        help="Seconds over which the use of the disks is told as a mean.",
    ),
    cfg.ListOpt(
        "provisioner_urls",
        default=[],
        help="URLs of the provisioner's instances, https://NAME:PORT, to which this node tells how "
        "it is. Empty: it is only asked.",
    ),
    cfg.StrOpt(
        "provisioner_token_file",
        help="File with the provisioner's token of role 'node' ('kumo-provisioner init' makes it "
        "as heartbeat.token). It may be replaced while the daemon runs.",
    ),
    cfg.StrOpt(
        "provisioner_ca_file",
        help="PEM file with the CA of the provisioner's certificate. Unset: the system's.",
    ),
    cfg.IntOpt(
        "heartbeat_interval",
        default=10,
        min=1,
        help="Seconds between two heartbeats; one is sent at once when a pool, a disk or a problem "
        "has changed.",
    ),
]


# Of the command line only.
CALIBRATE_OPTS = [
    cfg.MultiStrOpt("disk", default=[], help="calibrate: a disk of option 'disks'; repeatable."),
    cfg.BoolOpt("all", default=False, help="calibrate: all disks."),
    cfg.BoolOpt(
        "read-only",
        default=False,
        help="calibrate: only read the disks, instead of a scratch volume in the pool.",
    ),
    cfg.BoolOpt(
        "scratch",
        default=False,
        help="calibrate: write and read a scratch volume in the pool; so it is if not told.",
    ),
    cfg.IntOpt(
        "seconds", default=15, min=1, max=600, help="calibrate: seconds of each of the runs."
    ),
    cfg.BoolOpt("force", default=False, help="calibrate: also while the disks are in use."),
]


def list_opts() -> list[tuple[str | None, list[cfg.Opt]]]:
    """Entry point ``oslo.config.opts``."""
    return [(None, OPTS)]


@dataclasses.dataclass(frozen=True)
class NodePortal:
    """One address of exports.

    :ivar trtype: nvmet's ``addr_trtype``: ``tcp`` or ``rdma``.
    :ivar ip: address without brackets, canonical.
    """

    trtype: str
    ip: str
    port: int = DEFAULT_NVME_PORT

    @property
    def adrfam(self) -> str:
        """nvmet's ``addr_adrfam``."""
        return f"ipv{ipaddress.ip_address(self.ip).version}"

    def __str__(self) -> str:
        ip = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{self.trtype}://{ip}:{self.port}"

    def wire(self) -> Portal:
        return Portal(ip=self.ip, port=self.port, transport=TRANSPORTS[self.trtype][0])


_PORTAL = re.compile(r"^(\w+)://(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?$")


def parse_portal(text: str) -> NodePortal:
    """Parse ``transport://ip[:port]``.

    :raises ConfigError: when it is anything else.
    """
    match = _PORTAL.match(text.strip())
    try:
        if match is None:
            raise ValueError("it is not of the form transport://ip:port")
        transport, six, four, port = match.groups()
        if transport.lower() not in TRANSPORTS:
            raise ValueError(f"its transport is not one of {', '.join(sorted(TRANSPORTS))}")
        ip = str(ipaddress.IPv6Address(six) if six else ipaddress.IPv4Address(four))
        number = int(port) if port else DEFAULT_NVME_PORT
        if not 0 < number < 65536:
            raise ValueError("its port is not between 1 and 65535")
    except ValueError as error:
        raise errors.ConfigError(
            f"Option portals: {text!r} cannot be used, {error}",
            way_out="Write for instance tcp://10.0.0.11:4420 or rdma://[fd00::11]:4420",
        ) from error
    return NodePortal(TRANSPORTS[transport.lower()][1], ip, number)


def parse_portals(texts: Sequence[str]) -> list[NodePortal]:
    """All portals, in the order given, each once.

    :raises ConfigError: when one is wrong or there is none.
    """
    portals = list(dict.fromkeys(parse_portal(text) for text in texts))
    if not portals:
        raise errors.ConfigError(
            "Option portals is empty: nothing could be exported",
            way_out="Name at least one address of the data network",
        )
    return portals


def load(args: Sequence[str], files: Sequence[str] | None = None) -> cfg.ConfigOpts:
    """Read the configuration.

    :param args: command line without the program's name.
    :param files: default configuration files, for tests.
    """
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    conf.register_opts(OPTS)
    conf.register_cli_opt(
        cfg.StrOpt(
            "command",
            positional=True,
            required=False,
            default="run",
            choices=[
                ("run", "serve the API"),
                ("check", "verify configuration, disks and modules, and say what is wrong"),
                ("calibrate", "measure what the pools deliver, while the daemon is stopped"),
            ],
            help="What to do.",
        )
    )
    conf.register_cli_opts(CALIBRATE_OPTS)
    conf(list(args), project="kumo-node", default_config_files=list(files or [DEFAULT_FILE]))
    return conf
