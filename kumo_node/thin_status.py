# SPDX-License-Identifier: Apache-2.0
"""State of thin pools as device mapper tells it, all with one cheap command.

Format: Documentation/admin-guide/device-mapper/thin-provisioning.rst of Linux, "Status" of the
target ``thin-pool``; ``Fail`` and ``Error`` alone: ``pool_status`` in drivers/md/dm-thin.c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kumo_client import errors
from kumo_node.executor import CommandError, Executor

READ_WRITE, READ_ONLY, OUT_OF_SPACE, FAILED = "rw", "ro", "out_of_data_space", "fail"
_MODES = {READ_WRITE, READ_ONLY, OUT_OF_SPACE}


@dataclasses.dataclass(frozen=True)
class ThinStatus:
    """One pool. ``needs_check``: its metadata must be checked before it can be written to."""

    mode: str
    needs_check: bool = False
    data_percent: float = 0.0
    metadata_percent: float = 0.0


def of(found: Mapping[str, ThinStatus], vg: str, pool: str) -> ThinStatus | None:
    """The state of a pool; None when it is not active.

    LVM gives a pool that volumes use a device of its own, ``GROUP-POOL-tpool``, and one that was
    activated without any the name of the pool. Hyphens are doubled in the parts that they join.
    """
    name = f"{vg.replace('-', '--')}-{pool.replace('-', '--')}"
    return found.get(f"{name}-tpool") or found.get(name)


def read(executor: Executor) -> dict[str, ThinStatus]:
    """All active thin pools of the host by the name of their device.

    :raises BackendUnavailableError: there was no usable answer.
    """
    try:
        # Without --noflush the kernel commits the metadata of each pool first, which can wait.
        text = executor.run("dmsetup", "status", "--noflush", "--target", "thin-pool")
    except CommandError as error:
        raise errors.BackendUnavailableError(f"dmsetup gave no answer: {error.stderr}") from error
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(": ")
        if colon:
            found[name] = parse(rest)
    return found


def parse(text: str) -> ThinStatus:
    """Parse what stands behind the name.

    :raises BackendUnavailableError: it is no status of a thin pool.
    """
    words = text.split()
    try:
        if words[3] in ("Fail", "Error"):
            return ThinStatus(FAILED)
        metadata, data, rest = words[4], words[5], words[6:]
        mode = next(word for word in rest if word in _MODES)
        return ThinStatus(mode, "needs_check" in rest, _percent(data), _percent(metadata))
    except (IndexError, ValueError, StopIteration, ZeroDivisionError) as error:
        raise errors.BackendUnavailableError(
            f"dmsetup told nothing usable of a thin pool: {text!r}"
        ) from error


def _percent(text: str) -> float:
    used, total = text.split("/")
    return 100.0 * int(used) / int(total)
