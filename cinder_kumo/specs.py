# SPDX-License-Identifier: Apache-2.0
"""What a volume type asks for: its ``kumo:`` extra specs over the options of the backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cinder import exception
from oslo_utils import strutils

from cinder_kumo import conf
from kumo_client.schemas.volume import StorageClass

PREFIX = "kumo"
# Cinder's own key, which its scheduler reads too (cinder/scheduler/filters/capacity_filter.py).
CINDER_PROVISIONING = "provisioning:type"


def _flag(text: str) -> bool:
    return strutils.bool_from_string(text.removeprefix("<is>").strip(), strict=True)


def _count(low: int, high: int = 1 << 31) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def _one_of(*choices: Any) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        for choice in choices:
            if text.strip().upper() == str(choice):
                return choice
        raise ValueError(f"must be one of {', '.join(str(choice) for choice in choices)}")

    return parse


@dataclasses.dataclass(frozen=True)
class Spec:
    """One extra spec: ``kumo:<key>`` overrides ``option``. ``kind``: JSON type of its value."""

    key: str
    option: str
    kind: str
    parse: Callable[[str], Any]
    title: str


SPECS = (
    Spec(
        "num_replicas",
        "kioxia_num_replicas",
        "integer",
        _count(1, conf.MAX_REPLICAS),
        "Replicas, each on another storage node",
    ),
    Spec(
        "provisioning_type",
        "kioxia_provisioning_type",
        "string",
        _one_of("THICK", "THIN"),
        "THICK or THIN",
    ),
    Spec(
        "max_replica_down_time",
        "kioxia_max_replica_down_time",
        "integer",
        _count(0),
        "Minutes until a missing replica is replaced; 0: never",
    ),
    Spec(
        "block_size",
        "kioxia_block_size",
        "integer",
        _one_of(512, 4096),
        "Logical block size in bytes",
    ),
    Spec(
        "same_rack_allowed",
        "kioxia_same_rack_allowed",
        "boolean",
        _flag,
        "Two replicas may be in one rack",
    ),
    Spec(
        "max_iops_per_gb",
        "kioxia_max_iops_per_gb",
        "integer",
        _count(0),
        "Limit of operations per second for each GiB; 0: none",
    ),
    Spec(
        "desired_iops_per_gb",
        "kioxia_desired_iops_per_gb",
        "integer",
        _count(0),
        "Wanted operations per second for each GiB; 0: none",
    ),
    Spec(
        "max_bw_per_gb",
        "kioxia_max_bw_per_gb",
        "integer",
        _count(0),
        "Limit of bandwidth in KB/s for each GiB; 0: none",
    ),
    Spec(
        "desired_bw_per_gb",
        "kioxia_desired_bw_per_gb",
        "integer",
        _count(0),
        "Wanted bandwidth in KB/s for each GiB; 0: none",
    ),
    Spec(
        "reserved_space_percentage",
        "kioxia_vol_reserved_space_percentage",
        "integer",
        _count(0, 1000),
        "Space set aside for snapshots, in percent of the size",
    ),
    Spec(
        "span_allowed",
        "kioxia_span_allowed",
        "boolean",
        _flag,
        "A replica may span several SSDs of its node",
    ),
)
BY_KEY = {spec.key: spec for spec in SPECS}


@dataclasses.dataclass(frozen=True)
class Wish:
    """The values in force for one volume; units as in the options."""

    num_replicas: int
    provisioning_type: str
    max_replica_down_time: int
    block_size: int
    same_rack_allowed: bool
    max_iops_per_gb: int
    desired_iops_per_gb: int
    max_bw_per_gb: int
    desired_bw_per_gb: int
    reserved_space_percentage: int
    span_allowed: bool

    def storage_class(self, availability_zone: str | None) -> StorageClass:
        """The wish as the provisioner reads it; the zone is Cinder's, as existing clients do."""
        return StorageClass(
            num_replicas=self.num_replicas,
            zones=[availability_zone] if availability_zone else [],
            block_size=self.block_size,
            max_iops_per_gb=self.max_iops_per_gb,
            desired_iops_per_gb=self.desired_iops_per_gb,
            max_bw_per_gb=self.max_bw_per_gb,
            desired_bw_per_gb=self.desired_bw_per_gb,
            same_rack_allowed=self.same_rack_allowed,
            max_replica_down_time=self.max_replica_down_time,
            allow_span=self.span_allowed,
        )


def extra_specs_of(volume: Any) -> Mapping[str, str]:
    """The extra specs of a volume's type; a volume without one has none."""
    if not volume.volume_type_id:
        return {}
    return volume.volume_type.extra_specs or {}


def wish(configuration: Any, extra_specs: Mapping[str, str]) -> Wish:
    """Extra specs over options.

    :raises cinder.exception.InvalidVolumeType: for an unknown key or a value out of range.
    """
    values = {spec.key: getattr(configuration, spec.option) for spec in SPECS}
    values.update(_parsed(extra_specs))
    return Wish(**values)


def _parsed(extra_specs: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    if CINDER_PROVISIONING in extra_specs:
        found["provisioning_type"] = _value(
            CINDER_PROVISIONING, BY_KEY["provisioning_type"], extra_specs[CINDER_PROVISIONING]
        )
    for name, text in extra_specs.items():
        scope, _, key = name.partition(":")
        if scope != PREFIX:
            continue
        if key not in BY_KEY:
            raise exception.InvalidVolumeType(
                reason=f"extra spec {name} is not known; there are "
                + ", ".join(f"{PREFIX}:{known}" for known in sorted(BY_KEY))
            )
        value = _value(name, BY_KEY[key], text)
        if found.setdefault(key, value) != value:
            raise exception.InvalidVolumeType(
                reason=f"extra specs {name} and {CINDER_PROVISIONING} contradict each other"
            )
    return found


def _value(name: str, spec: Spec, text: Any) -> Any:
    try:
        return spec.parse(str(text))
    except ValueError as error:
        raise exception.InvalidVolumeType(reason=f"extra spec {name}={text}: {error}") from None
