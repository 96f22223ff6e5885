# SPDX-License-Identifier: Apache-2.0
"""The verdict on a pool for any sight, and the parsers of what is seen."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_node import thin_status
from kumo_node.executor import CommandError
from kumo_node.pool import Condition
from kumo_node.smart import Smart, SmartLog
from kumo_node.thin_status import ThinStatus, parse
from kumo_node.verdict import DiskSight, PoolSight, Thresholds, judge

LIMITS = Thresholds()
MAYBE = st.sampled_from([True, False, None])
DISKS = st.builds(
    DiskSight,
    path=st.sampled_from(["/dev/a", "/dev/b"]),
    there=st.booleans(),
    readable=MAYBE,
    identity=st.sampled_from(["1", "2"]),
    known=st.sampled_from(["", "1", "2"]),
    held=MAYBE,
    smart=st.one_of(
        st.none(), st.builds(Smart, wear_percent=st.integers(0, 255),
                             critical_warning=st.integers(0, 63))
    ),
)  # fmt: skip
STATUS = st.builds(
    ThinStatus,
    mode=st.sampled_from(["rw", "ro", "out_of_data_space", "fail"]),
    needs_check=st.booleans(),
    data_percent=st.floats(0, 100),
    metadata_percent=st.floats(0, 100),
)
SIGHTS = st.builds(
    PoolSight,
    name=st.just("p"),
    disks=st.lists(DISKS, min_size=1, max_size=2).map(tuple),
    told=st.booleans(),
    status=st.one_of(st.none(), STATUS),
    was_active=st.booleans(),
)
BEFORE = st.sampled_from(
    [Condition(), Condition("failed", "because"), Condition("readonly", "because")]
)


@settings(max_examples=400, deadline=None)
@given(SIGHTS, BEFORE)
def test_only_a_definite_sign_changes_the_state(sight, before):
    verdict = judge(sight, before, LIMITS)
    broken = any(not disk.there or disk.readable is False for disk in sight.disks)
    unknown = not sight.told or any(disk.readable is None for disk in sight.disks)
    if broken:
        assert verdict.condition.state == "failed"
        assert (verdict.reopen, verdict.relieve) == (False, "")
    elif unknown:
        assert verdict.condition == before
        assert any("could not be told" in text for text in verdict.problems)
        assert (verdict.reopen, verdict.relieve) == (False, "")
    if verdict.condition.state != "ok":
        assert verdict.condition.reason
        assert broken or unknown or verdict.problems
    if verdict.clean:
        assert verdict.reopen
        assert sight.status is not None
    if verdict.relieve:
        assert sight.status.mode != "fail"


@settings(max_examples=200, deadline=None)
@given(STATUS, BEFORE)
def test_a_pool_in_order_is_judged_by_device_mapper_alone(status, before):
    disk = DiskSight("/dev/a", there=True, identity="1", known="1", held=True)
    verdict = judge(PoolSight("p", (disk,), status=status), before, LIMITS)
    if status.mode == "fail":
        assert verdict.condition.state == "failed"
    elif status.mode == "ro" or status.needs_check:
        assert verdict.condition.state == "readonly"
    else:
        assert verdict.condition == Condition()
        used = max(status.data_percent, status.metadata_percent)
        assert bool(verdict.problems) == (used > LIMITS.warn)
        out = status.mode == "out_of_data_space"
        assert (verdict.relieve == "reserve") == (used > LIMITS.critical or out)
    again = judge(PoolSight("p", (disk,), status=status), verdict.condition, LIMITS)
    assert again.condition == verdict.condition


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            "0 33423360 thin-pool 5 112/4096 1000/4000 - rw discard_passdown "
            "error_if_no_space - 1024",
            ThinStatus("rw", False, 25.0, 112 / 40.96),
        ),
        (
            "0 33423360 thin-pool 1 4096/4096 0/4000 7 ro no_discard_passdown "
            "queue_if_no_space needs_check 1024",
            ThinStatus("ro", True, 0.0, 100.0),
        ),
        (
            "0 8 thin-pool 1 1/100 4000/4000 - out_of_data_space discard_passdown "
            "error_if_no_space - 1024",
            ThinStatus("out_of_data_space", False, 100.0, 1.0),
        ),
        ("0 33423360 thin-pool Fail", ThinStatus("fail")),
        ("0 33423360 thin-pool Error", ThinStatus("fail")),
    ],
)
def test_the_states_of_device_mapper(text, status):
    assert parse(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 1 thin-pool",
        "0 1 thin-pool 1 a/b c/d - rw",
        "0 1 thin-pool 1 1/2 1/2 - odd",
        "0 1 thin-pool 1 1/0 0/0 - rw",
    ],
)
def test_a_state_that_cannot_be_understood_is_no_answer(text):
    with pytest.raises(errors.BackendUnavailableError, match="nothing usable"):
        parse(text)


class Says:
    def __init__(self, text):
        self.text = text

    def run(self, *argv):
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


def test_pools_are_found_by_the_name_of_their_device():
    text = (
        "kumo_0a-pool-tpool: 0 1 thin-pool Fail\nother--vg-x-tpool: 0 1 thin-pool Error\n"
        # As LVM 2.03.16 names a pool that no volume uses.
        "kumo_0b-pool: 0 33079296 thin-pool 0 843/8192 0/258432 - rw discard_passdown "
        "error_if_no_space - 1024 \n"
    )
    found = thin_status.read(Says(text))
    assert thin_status.of(found, "kumo_0a", "pool") == ThinStatus("fail")
    assert thin_status.of(found, "other-vg", "x") == ThinStatus("fail")
    assert thin_status.of(found, "kumo_0b", "pool").mode == "rw"
    assert thin_status.of(found, "kumo_0c", "pool") is None
    assert thin_status.read(Says("No devices found\n")) == {}
    with pytest.raises(errors.BackendUnavailableError, match="no answer"):
        thin_status.read(Says(CommandError(["dmsetup"], None, "late")))


LOG = {"critical_warning": 4, "temperature": 311, "avail_spare": 100, "percent_used": 7,
       "media_errors": 2}  # fmt: skip


@pytest.mark.parametrize(
    "log",
    [LOG, LOG | {"media_errors": "2"}, LOG | {"critical_warning": {"value": 4, "degraded": 1}}],
)
def test_a_smart_log(log):
    smart = SmartLog(Says(json.dumps(log))).read("/dev/nvme0n1")
    assert dataclasses.astuple(smart) == (7, 2, 38, 4)
    assert smart.warnings() == ["its reliability is degraded"]


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("/dev/sda", json.dumps(LOG)),
        ("/dev/nvme0n1p1", json.dumps(LOG)),
        ("/dev/nvme0n1", "not json"),
        ("/dev/nvme0n1", "[]"),
        ("/dev/nvme0n1", '{"temperature": "warm"}'),
        ("/dev/nvme0n1", CommandError(["nvme"], None, "not found")),
        ("/dev/nvme0n1", CommandError(["nvme"], 1, "no such device")),
    ],
)
def test_a_disk_without_a_smart_log_is_not_known(device, text):
    assert SmartLog(Says(text)).read(device) is None


def test_fields_that_are_not_there_are_not_known():
    assert SmartLog(Says("{}")).read("/dev/nvme1n2") == Smart()
