# SPDX-License-Identifier: Apache-2.0
"""How busy the pools are: operations and KB/s of their disks over the last minutes.

From ``/sys/block/<disk>/stat``: reads, reads merged, sectors read, ms, writes, writes merged,
sectors written (Documentation/ABI/stable/sysfs-block and Documentation/block/stat.rst; a sector is
512 bytes whatever the block size). The counters start anew when a disk is taken away and given
back; a counter that has fallen, for whatever reason, begins a new series.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Callable

from oslo_log import log

from kumo_node.disks import device_of
from kumo_node.pools import Pools

LOG = log.getLogger(__name__)
_READS, _READ_SECTORS, _WRITES, _WRITTEN_SECTORS = 0, 2, 4, 6
_SECTOR = 512
_KIB = 1024


@dataclasses.dataclass(frozen=True)
class Sample:
    """Counters of a disk at a time in seconds."""

    at: float
    operations: int
    sectors: int


@dataclasses.dataclass(frozen=True)
class Use:
    """Mean operations and KB per second over ``window`` seconds; 0 seconds is not known."""

    iops: int = 0
    bw: int = 0
    window: int = 0


def parse(text: str, at: float) -> Sample | None:
    """The counters in a stat file; None when there are too few."""
    try:
        fields = [int(word) for word in text.split()]
        return Sample(
            at, fields[_READS] + fields[_WRITES], fields[_READ_SECTORS] + fields[_WRITTEN_SECTORS]
        )
    except (ValueError, IndexError):
        return None


class Series:
    """The samples of one disk.

    :param window: seconds that are kept.
    """

    def __init__(self, window: float) -> None:
        self.window = window
        self._samples: collections.deque[Sample] = collections.deque()

    def add(self, sample: Sample | None) -> None:
        """Add a sample; None, for a disk that cannot be seen, begins anew."""
        last = self._samples[-1] if self._samples else None
        if sample is None or (last is not None and _fell(last, sample)):
            self._samples.clear()
        if sample is not None:
            self._samples.append(sample)
            while sample.at - self._samples[0].at > self.window:
                self._samples.popleft()

    def rates(self) -> tuple[float, float, float]:
        """Operations and KB per second, and over how many seconds; zeros when not known."""
        if len(self._samples) < 2:
            return 0.0, 0.0, 0.0
        first, last = self._samples[0], self._samples[-1]
        seconds = last.at - first.at
        kib = (last.sectors - first.sectors) * _SECTOR / _KIB
        return (last.operations - first.operations) / seconds, kib / seconds, seconds


def _fell(before: Sample, now: Sample) -> bool:
    return now.operations < before.operations or now.sectors < before.sectors or now.at <= before.at


class Usage:
    """The loop that samples.

    :param sys_root: where sysfs is, ``/sys``.
    :param window: seconds over which the mean is taken.
    :param interval: seconds between two samples.
    """

    def __init__(
        self,
        pools: Pools,
        sys_root: str | os.PathLike[str] = "/sys",
        *,
        window: float = 300.0,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pools = pools
        self.sys_root = pathlib.Path(sys_root)
        self.window = window
        self.interval = interval
        self.clock = clock
        self._series: dict[str, Series] = {}
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self.sample()
        while not self._stopped.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """Look at all disks once."""
        found = {path: self._read(path) for pool in self.pools.values() for path in pool.paths()}
        with self._mutex:
            for path in set(self._series) - set(found):
                del self._series[path]
            for path, sample in found.items():
                self._series.setdefault(path, Series(self.window)).add(sample)

    def _read(self, path: str) -> Sample | None:
        device = device_of(path)
        if device is None:
            return None
        try:
            stat = self.sys_root / "class" / "block" / pathlib.Path(device).name / "stat"
            return parse(stat.read_text(), self.clock())
        except OSError as error:
            LOG.debug("%s tells no use: %s", path, error)
            return None

    def of(self, name: str) -> Use:
        """The use of a pool: the sum of its disks."""
        with self._mutex:
            rates = [
                self._series[path].rates()
                for path in self.pools[name].paths()
                if path in self._series
            ]
        window = max((seconds for _, _, seconds in rates), default=0.0)
        return Use(
            round(sum(iops for iops, _, _ in rates)),
            round(sum(bw for _, bw, _ in rates)),
            int(window),
        )
