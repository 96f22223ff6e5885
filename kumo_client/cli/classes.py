# SPDX-License-Identifier: Apache-2.0
"""Options for storage classes."""

from __future__ import annotations

import argparse
from typing import Any

from kumo_client.schemas.volume import StorageClass, StorageClassUpdate

_RATES = (
    ("--max-iops-per-gib", "max_iops_per_gb", "cap in IOPS for each GiB; 0: none"),
    ("--desired-iops-per-gib", "desired_iops_per_gb", "guaranteed IOPS for each GiB; 0: none"),
    ("--max-bw-per-gib", "max_bw_per_gb", "cap in KB/s for each GiB; 0: none"),
    ("--desired-bw-per-gib", "desired_bw_per_gb", "guaranteed KB/s for each GiB; 0: none"),
)
_LIVE = (
    "num_replicas",
    "max_iops_per_gb",
    "desired_iops_per_gb",
    "max_bw_per_gb",
    "desired_bw_per_gb",
    "max_replica_down_time",
    "allow_span",
)


def live_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be changed on a volume."""
    parser.add_argument("--replicas", dest="num_replicas", type=int, metavar="N")
    for option, dest, text in _RATES:
        parser.add_argument(option, dest=dest, type=int, metavar="N", help=text)
    parser.add_argument(
        "--max-replica-down-time",
        type=int,
        metavar="MINUTES",
        help="a leg that is away for longer is replaced; 0: never",
    )
    parser.add_argument(
        "--span",
        dest="allow_span",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether it may lie on a pool of several disks",
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked of a new volume."""
    live_options(parser)
    parser.add_argument("--block-size", type=int, choices=(512, 4096))
    for place in ("zone", "rack", "region"):
        parser.add_argument(
            f"--{place}",
            dest=f"{place}s",
            action="append",
            metavar="NAME",
            help=f"a {place} where replicas may be; may be repeated",
        )
    parser.add_argument(
        "--same-rack",
        dest="same_rack_allowed",
        action="store_true",
        default=None,
        help="replicas may share a rack",
    )


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def storage_class(args: argparse.Namespace) -> StorageClass:
    """The storage class of a new volume."""
    more = ("block_size", "zones", "racks", "regions", "same_rack_allowed")
    return StorageClass(**_given(args, _LIVE + more))


def update(args: argparse.Namespace) -> StorageClassUpdate:
    """What changes of a storage class."""
    return StorageClassUpdate(**_given(args, _LIVE))
