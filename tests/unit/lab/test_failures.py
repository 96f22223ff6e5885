# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime

import pytest

from lab import failures
from lab.errors import ScenarioFailedError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.fixture
def lab(labs, screen):
    return labs.up("t", storage=1, compute=1, progress=screen, kernel="6.12")


def test_consoles_journals_and_logs_are_kept(lab, tmp_path):
    error = raised(ScenarioFailedError("3 volumes left"))
    path = failures.collect(lab, "tour", error, tmp_path / "out", lambda: NOW)
    assert path == tmp_path / "out/20260102T030405Z-tour"
    kept = {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}
    assert kept.pop("error.txt").endswith("ScenarioFailedError: 3 volumes left\n\n")
    assert kept == {
        "storage1-console.log": "console of storage1\n",
        "compute1-console.log": "console of compute1\n",
        "storage1-journal.log": "storage1: journalctl -b --no-pager --lines=50000\n",
        "compute1-journal.log": "compute1: journalctl -b --no-pager --lines=50000\n",
        "logs/provisioner.log": "a line of the provisioner\nthe last\n",
    }
    assert lab.machines["storage1"].done == [
        ("journalctl -b --no-pager --lines=50000", False, 20.0)
    ]


def test_what_cannot_be_had_is_said(lab, tmp_path):
    lab.machines["storage1"].status = "off"
    lab.machines["compute1"].console_path.unlink()
    path = failures.collect(lab, "x", raised(ValueError("v")), tmp_path / "out", lambda: NOW)
    text = (path / "error.txt").read_text()
    assert "ValueError: v" in text
    assert "storage1: no journal: storage1: no answer" in text
    assert "compute1.console" in text
    assert (path / "storage1-console.log").exists()
    assert (path / "compute1-journal.log").exists()


def test_without_a_lab_the_error_alone_is_kept(tmp_path):
    path = failures.collect(None, "x", raised(ValueError("v")), tmp_path, lambda: NOW)
    assert [p.name for p in path.iterdir()] == ["error.txt"]
    assert "there was no lab" in (path / "error.txt").read_text()


def test_what_the_logs_say_of_the_failure(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "storage1-console.log").write_text("I/O error, dev vdb\n")
    (tmp_path / "storage1-journal.log").write_text("kernel: I/O error, dev vdb\nall is well\n")
    (tmp_path / "storage2-console.log").write_text("nvme0: I/O tag 1 timeout, aborting\n")
    lines = [f"12:00:{n:02} ERROR cinder no {n}\n" for n in range(9)]
    lines += ["WARNING oslo: Deprecated option\n", "INFO no ERRORS\n", "ValueError: " + "x" * 400]
    (tmp_path / "logs" / "cinder-volume.log").write_text("".join(lines))
    found = failures.telling(tmp_path)
    assert found[:5] == [f"cinder-volume.log: 12:00:0{n} ERROR cinder no {n}" for n in range(4, 9)]
    assert found[5].startswith("cinder-volume.log: ValueError: xxx")
    assert len(found[5]) < 330
    assert found[6:] == [
        "storage1-journal.log: kernel: I/O error, dev vdb",
        "storage2-console.log: nvme0: I/O tag 1 timeout, aborting",
    ]
