# SPDX-License-Identifier: Apache-2.0
"""Options of the connector, in the section ``[os_brick_nvmeof]`` of nova.conf and cinder.conf."""

from __future__ import annotations

import dataclasses
import re

from oslo_config import cfg

from os_brick_nvmeof import props

GROUP = "os_brick_nvmeof"
# The first that looks for answers twice as often (nvme_keep_alive_work_period(),
# drivers/nvme/host/core.c). Measured on 6.1 and 6.12: doc/source/contributor/healing-behaviour.rst.
_QUICK_SINCE = (6, 5)
_SLOW_FAST_IO_FAIL = 2

_PLAIN = [
    cfg.IntOpt(
        "plain_keep_alive",
        default=5,
        min=1,
        help="Seconds between two keep-alives on connections of volumes with one replica.",
    ),
    cfg.IntOpt(
        "plain_reconnect_delay",
        default=2,
        min=1,
        help="Seconds between two tries to reconnect, for volumes with one replica.",
    ),
    cfg.IntOpt(
        "plain_fast_io_fail",
        default=-1,
        min=-1,
        help="Seconds after which I/O to a volume with one replica fails while its connection is "
        "lost. -1: never, I/O waits until the node is back, as a guest's file system needs it.",
    ),
]
_REPLICATED = [
    cfg.IntOpt(
        "replicated_keep_alive",
        default=2,
        min=1,
        help="Seconds between two keep-alives on connections of replicated volumes. A lost node is "
        "noticed after about twice that time.",
    ),
    cfg.IntOpt(
        "replicated_reconnect_delay",
        default=1,
        min=1,
        help="Seconds between two tries to reconnect, for replicated volumes.",
    ),
    cfg.IntOpt(
        "replicated_fast_io_fail",
        default=4,
        min=-1,
        help="Seconds after which I/O to one leg of a replicated volume fails while its connection "
        "is lost, so that the array goes on with the other legs. They count from when the kernel "
        "notices the loss; the healing agent cuts them short when it finds a node dead. All legs "
        "may be away for as long: an outage that lasts longer can break the array until it is let "
        "go of (MD_BROKEN, drivers/md/raid1.c). -1: never; then the array hangs as long as the "
        "node is away. Unless it is set, it is 2 on kernels before 6.5, which notice a loss two to "
        "three seconds later.",
    ),
]
_BOTH = [
    cfg.IntOpt(
        "ctrl_loss_tmo",
        default=-1,
        min=-1,
        help="Seconds after which the kernel gives a lost connection up and removes its devices. "
        "-1: never; the agent or a detach removes it.",
    ),
    cfg.IntOpt(
        "io_queues",
        default=4,
        min=0,
        help="I/O queues of each connection, at most. 0: as many as the host has processors, which "
        "on large hosts costs the storage nodes much memory.",
    ),
    cfg.IntOpt(
        "queue_size",
        default=128,
        min=16,
        max=1024,
        help="Commands that one I/O queue holds.",
    ),
    cfg.FloatOpt(
        "connect_timeout",
        default=4.0,
        min=0.5,
        help="Seconds to wait for a portal, at an attach. A leg that has none by then is left out "
        "if the volume can do without it.",
    ),
    cfg.FloatOpt(
        "degraded_timeout",
        default=2.5,
        min=0.5,
        help="Seconds from the beginning of an attach after which a replicated volume does not "
        "wait any longer for legs whose portals are silent, if those that are there are proven to "
        "have all its data. The healing agent takes the others in when their nodes are back.",
    ),
    cfg.FloatOpt(
        "device_timeout",
        default=10.0,
        min=0.5,
        help="Seconds to wait for a device to appear on a live connection, or for its new size.",
    ),
    cfg.FloatOpt(
        "stop_timeout",
        default=20.0,
        min=0.5,
        help="Seconds to wait for an array to stop and for its legs to be released, at a detach.",
    ),
]
_ARRAY = [
    cfg.BoolOpt(
        "md_failfast",
        default=False,
        help="Mark the legs of new arrays as failfast. I/O to a lost leg fails at once then, but a "
        "short loss of all legs can mark the array as broken for good on recent kernels "
        "(MD_BROKEN, drivers/md/raid1.c).",
    ),
    cfg.StrOpt(
        "bitmap",
        default="internal",
        choices=["internal", "lockless"],
        help="Bitmap of new arrays. lockless: llbitmap, if kernel and mdadm have it (Linux 6.18, "
        "mdadm 4.5); otherwise internal is taken and a warning says so.",
    ),
]
_SECURITY = [
    cfg.StrOpt(
        "dhchap_secret",
        secret=True,
        help="DH-HMAC-CHAP key of this host, 'DHHC-1:...' as 'nvme gen-dhchap-key' prints it. "
        "Storage nodes that do not ask for one are connected to without it.",
    ),
    cfg.StrOpt(
        "dhchap_ctrl_secret",
        secret=True,
        help="DH-HMAC-CHAP key that storage nodes have to prove when they ask for that of the "
        "host. The kernel asks no proof of a node that does not ask for one itself.",
    ),
    cfg.BoolOpt(
        "tls",
        default=False,
        help="Connect over TLS with the pre-shared keys of the kernel's key ring .nvme (Linux 6.7 "
        "and later; tlshd must run). NVMe/TCP only: connections of NVMe/RDMA are made without.",
    ),
]
OPTS = [*_PLAIN, *_REPLICATED, *_BOTH, *_ARRAY, *_SECURITY]


@dataclasses.dataclass(frozen=True)
class TimeOuts:
    """Of one connection, in seconds; ``fast_io_fail`` and ``ctrl_loss`` -1 for never."""

    keep_alive: int
    reconnect_delay: int
    fast_io_fail: int
    ctrl_loss: int


def register(conf: cfg.ConfigOpts, release: str = "") -> None:
    """Make the options known; may be called again.

    :param release: of the kernel, for defaults that depend on it; see :func:`suit`.
    """
    # Every call of the connector comes by here, and oslo.config compares option by option.
    if GROUP not in conf:
        conf.register_opts(OPTS, group=GROUP)
        suit(conf, release)


def suit(conf: cfg.ConfigOpts, release: str) -> None:
    """Choose the defaults for a kernel.

    :param release: "6.1.0-30-amd64", as uname(2) has it; "" for any.
    """
    if (0, 0) < version(release) < _QUICK_SINCE:
        conf.set_default("replicated_fast_io_fail", _SLOW_FAST_IO_FAIL, group=GROUP)


def version(release: str) -> tuple[int, int]:
    """The first two numbers of a kernel's release; zeros when it has none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """For oslo.config's generator."""
    return [(GROUP, OPTS)]


def time_outs(conf: cfg.ConfigOpts, io_class: str) -> TimeOuts:
    """The time-outs of a class: ``plain`` or ``replicated``."""
    chosen = conf[GROUP]
    prefix = "replicated" if io_class == props.REPLICATED else "plain"
    return TimeOuts(
        keep_alive=chosen[f"{prefix}_keep_alive"],
        reconnect_delay=chosen[f"{prefix}_reconnect_delay"],
        fast_io_fail=chosen[f"{prefix}_fast_io_fail"],
        ctrl_loss=chosen.ctrl_loss_tmo,
    )
