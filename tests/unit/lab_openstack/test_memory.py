# SPDX-License-Identifier: Apache-2.0
from lab.openstack import memory


def add(proc, pid, parent, kib, name="python"):
    entry = proc / str(pid)
    entry.mkdir()
    (entry / "stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
    if kib is not None:
        (entry / "smaps_rollup").write_text(f"00-ff r--p [rollup]\nRss: 9 kB\nPss:   {kib} kB\n")


def test_sums_the_tree_of_a_process_and_nothing_else(tmp_path):
    add(tmp_path, 10, 1, 100)
    add(tmp_path, 11, 10, 20, name="odd) S 1 (name")
    add(tmp_path, 12, 11, 3)
    add(tmp_path, 13, 1, 7000)
    (tmp_path / "meminfo").touch()
    assert memory.pss_kib(10, tmp_path) == 123


def test_processes_that_ended_meanwhile_count_as_nothing(tmp_path):
    add(tmp_path, 10, 1, 100)
    add(tmp_path, 11, 10, None)
    (tmp_path / "14").mkdir()
    assert memory.pss_kib(10, tmp_path) == 100
    assert memory.pss_kib(99, tmp_path) == 0
