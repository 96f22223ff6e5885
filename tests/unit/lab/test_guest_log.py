# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from lab import guest_log
from lab.errors import LabError
from lab.guest_log import Line

SHOWN = """\
[    0.000000] Linux version 6.12
[   10.500000] kumo-lab-time 1700000000.000000000
[   20.250000] md/raid1:md127: Disk failure on nvme0n1, disabling device.
 a line that goes on
[   30.000000] kumo-lab-time 1700000019.750000000
"""


def test_times_are_those_of_the_newest_mark():
    assert guest_log.parse(SHOWN) == [
        Line(1699999989.75, "Linux version 6.12"),
        Line(1700000010.0, "md/raid1:md127: Disk failure on nvme0n1, disabling device."),
    ]


def test_a_log_without_mark_is_of_no_use():
    with pytest.raises(LabError, match="no mark"):
        guest_log.parse("[    0.000000] Linux version 6.12\n")


def test_read_takes_the_guests_clock_into_account():
    machine = SimpleNamespace(run=lambda _: SimpleNamespace(stdout=SHOWN), clock=lambda: (2.0, 0.1))
    found = guest_log.first(guest_log.read(machine), "Disk failure", since=1.0)
    assert found.time == 1700000008.0


def test_first():
    lines = [Line(1.0, "a b"), Line(2.0, "a c")]
    assert guest_log.first(lines, "a .") == lines[0]
    assert guest_log.first(lines, "a .", 1.5) == lines[1]
    assert guest_log.first(lines, "d") is None


def test_matching():
    lines = [Line(1.0, "a b"), Line(2.0, "a c"), Line(3.0, "d")]
    assert guest_log.matching(lines, 1.5, "a .") == [lines[1]]
    assert guest_log.matching(lines, 0.0, "d|b") == [lines[0], lines[2]]
