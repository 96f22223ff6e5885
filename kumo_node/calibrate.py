# SPDX-License-Identifier: Apache-2.0
"""``kumo-node calibrate``: measure what a pool delivers, with short runs of fio.

``--scratch`` (the default) makes a thin volume, fills it, and reads and writes it: what is found is
the least of both, for a guarantee must hold for either. ``--read-only`` reads the disks themselves
and changes nothing; writes are usually slower. The record of the node must be free, so the daemon
is stopped meanwhile; the volumes stay exported.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

from oslo_log import log

from kumo_client import errors
from kumo_client.naming import EXTENT
from kumo_node.executor import CommandError, Executor
from kumo_node.lvm import TAG, made_tag
from kumo_node.pool import Pool
from kumo_node.service import Node
from kumo_node.spec import MeasuredRecord

LOG = log.getLogger(__name__)
SCRATCH, READ_ONLY = "scratch", "read-only"
# Fixed, so that what a run that was killed has left is found by the next.
_NAME = "kumo-calibrate"
_TOKEN = "calibrate"  # noqa: S105 - part of a tag
_LARGEST = 8 << 30
_SMALLEST = 64 << 20
# More than so many operations per second on its disks, and a pool is in use.
_QUIET_IOPS = 200
_LOOK_SECONDS = 2.0
# Name, fio's rw, block size, queue depth of each of the processes, and their number.
_READS = (("random reads", "randread", "4k", 32, 4), ("reads", "read", "1M", 16, 1))
_WRITES = (("random writes", "randwrite", "4k", 32, 4), ("writes", "write", "1M", 16, 1))


@dataclasses.dataclass(frozen=True)
class Result:
    """What fio found: operations per second and KB/s, of reads and writes together."""

    iops: int
    bw: int


def parse(text: str) -> Result:
    """The totals of a run with ``--output-format=json --group_reporting``.

    ``bw`` of fio is in KiB/s ("JSON output", fio(1)).

    :raises InternalError: it is no such output, or a job has failed.
    """
    try:
        # Notes of fio may stand before the object.
        jobs = json.loads(text[text.index("{") :])["jobs"]
        failed = [job["error"] for job in jobs if job["error"]]
        sides = [job[side] for job in jobs for side in ("read", "write")]
        result = Result(
            round(sum(side["iops"] for side in sides)), sum(int(side["bw"]) for side in sides)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise errors.InternalError(f"fio gave no usable output: {error}") from error
    if failed:
        raise errors.InternalError(f"fio ended with error {failed[0]}")
    return result


class Calibration:
    """Measures the pools of a node that is not serving.

    :param executor: runs fio.
    :param seconds: time of each run.
    :param say: shows progress to a person.
    """

    def __init__(
        self,
        node: Node,
        executor: Executor,
        *,
        how: str = SCRATCH,
        seconds: int = 15,
        force: bool = False,
        say: Callable[[str], object] = print,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.node = node
        self.executor = executor
        self.how = how
        self.seconds = seconds
        self.force = force
        self.say = say
        self.sleep = sleep

    def run(self, paths: Sequence[str]) -> None:
        """Measure the pools on these disks, or all, and record what was found.

        :raises InvalidInputError: a path is none of option ``disks``.
        :raises BusyError: the disks are in use.
        :raises KumoError: a pool could not be measured; those before it are recorded.
        """
        pools = self._pools(paths)
        self._refuse_load(pools)
        for pool in pools:
            found = self._measure(pool)
            record = MeasuredRecord(iops=found.iops, bw=found.bw, how=self.how, at=int(time.time()))
            with self.node.ctx.spec.edit() as data:
                data.measured[pool.name] = record
            self.say(f"{pool.name}: {found.iops} operations/s, {found.bw} KB/s")

    def _pools(self, paths: Sequence[str]) -> list[Pool]:
        pools = list(self.node.ctx.pools.values())
        known = {path for pool in pools for path in pool.paths()}
        unknown = sorted(set(paths) - known)
        if unknown:
            raise errors.InvalidInputError(
                f"{', '.join(unknown)} is not in a pool of this node",
                way_out="Write it as in option disks",
            )
        return [pool for pool in pools if not paths or set(paths) & set(pool.paths())]

    def _refuse_load(self, pools: Sequence[Pool]) -> None:
        usage = self.node.usage
        usage.sample()
        self.sleep(_LOOK_SECONDS)
        usage.sample()
        for pool in pools:
            if usage.of(pool.name).iops > _QUIET_IOPS and not self.force:
                raise errors.BusyError(
                    f"Pool {pool.name} does {usage.of(pool.name).iops} operations/s: what is "
                    "measured would be wrong, and the run would slow its volumes down",
                    way_out="Measure before the node is used, or add --force",
                )

    def _measure(self, pool: Pool) -> Result:
        pool.check_writable()
        if self.how == READ_ONLY:
            per_disk = [self._runs(disk.device, _READS) for disk in pool.disks]
            # LVM puts disks one after the other: a volume can lie on one of them alone.
            return Result(min(r.iops for r in per_disk), min(r.bw for r in per_disk))
        lvm = pool.lvm
        lvm.remove(_NAME, _TOKEN)
        pool.check_room(self.node.ctx.spec.data, self._size(pool))
        lvm.create(_NAME, self._size(pool), (TAG, made_tag(_TOKEN)))
        try:
            self.say(f"{pool.name}: filling {self._size(pool) >> 20} MiB")
            self._fio(lvm.device(_NAME), "write", "1M", 16, 1, timed=False)
            return self._runs(lvm.device(_NAME), (*_READS, *_WRITES))
        finally:
            lvm.remove(_NAME, _TOKEN)

    def _size(self, pool: Pool) -> int:
        """A sixteenth of the pool, within bounds; the space is given back."""
        state = pool.state(max_age=3600)
        size = (state.bytes if state else 0) // 16
        return max(min(size, _LARGEST), _SMALLEST) // EXTENT * EXTENT

    def _runs(self, device: str, runs: Sequence[tuple[str, str, str, int, int]]) -> Result:
        iops, bw = [], []
        for name, way, block, depth, jobs in runs:
            found = self._fio(device, way, block, depth, jobs)
            self.say(f"  {name} of {block}: {found.iops} operations/s, {found.bw} KB/s")
            if way.startswith("rand"):
                iops.append(found.iops)
            else:
                bw.append(found.bw)
        return Result(min(iops), min(bw))

    def _fio(
        self, device: str, way: str, block: str, depth: int, jobs: int, *, timed: bool = True
    ) -> Result:
        argv = [
            "fio", "--name=kumo", f"--filename={device}", f"--rw={way}", f"--bs={block}",
            f"--iodepth={depth}", f"--numjobs={jobs}", "--group_reporting", "--ioengine=libaio",
            "--direct=1", "--output-format=json", "--allow_file_create=0",
        ]  # fmt: skip
        if timed:
            argv += ["--time_based", f"--runtime={self.seconds}", "--ramp_time=1"]
        if "read" in way:
            argv.append("--readonly")
        try:
            return parse(self.executor.run(*argv))
        except CommandError as error:
            raise errors.InternalError(
                f"fio failed: {error.stderr}", way_out="Install fio (Debian: fio)"
            ) from error
