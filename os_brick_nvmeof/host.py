# SPDX-License-Identifier: Apache-2.0
"""What the connector needs of the host it runs on: the only way to root, and to the kernel's files.

Reading sysfs needs no privilege and goes through ``root`` directly. Everything else is a method
here. :mod:`os_brick_nvmeof.privileged` has the one that is used for real; tests hand in a fake.
"""

from __future__ import annotations

import pathlib
from typing import Protocol


class CommandError(Exception):
    """A command did not succeed.

    :ivar returncode: its exit code; None when it did not end in time or could not be started, so
        that nothing is known about what it did.
    """

    def __init__(self, argv: tuple[str, ...], returncode: int | None, output: str) -> None:
        super().__init__(f"{' '.join(argv[:2])} ended with {returncode}: {output.strip()}")
        self.argv = argv
        self.returncode = returncode
        self.output = output.strip()

    @property
    def definite(self) -> bool:
        """True when the command ran to its end and said no."""
        return self.returncode is not None and self.returncode > 0


class Host(Protocol):
    """The host.

    :ivar root: where /sys, /dev, /proc and /etc are found: "/" except in tests.
    """

    root: pathlib.Path

    def fabrics(self, options: str) -> str:
        """Write connect options to /dev/nvme-fabrics and read the kernel's answer.

        :param options: as drivers/nvme/host/fabrics.c parses them, "transport=tcp,traddr=...".
            When empty nothing is written, and the kernel answers with the options that it knows,
            "instance=-1,cntlid=-1,transport=%s,..." (Linux 5.17); EINVAL before that.
        :returns: the answer, "instance=3,cntlid=1".
        :raises OSError: with the kernel's errno: EALREADY (connected already, also EEXIST),
            ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, EINVAL (an option it does not know), ...
        """

    def write(self, path: str, value: str) -> None:
        """Write to an attribute under /sys; ``path`` is absolute, without ``root``.

        :raises OSError: as the kernel answers.
        """

    def probe(self, address: str, port: str, timeout: float) -> None:
        """Open a TCP connection and close it; needs no privilege.

        The kernel makes one connection after the other, on the whole host (nvmf_dev_mutex in
        drivers/nvme/host/fabrics.c), and waits seconds for a node that is silent. So nobody asks
        it for one before the portal has answered.

        :param timeout: seconds.
        :raises OSError: nobody answers there; TimeoutError when it took too long.
        """

    def flush(self, device: str) -> None:
        """Write out what the page cache holds of a block device, and empty it (BLKFLSBUF).

        Blocks for as long as the device does.

        :raises OSError: as the kernel answers.
        """

    def identify(self, controller: str, cns: int, nsid: int) -> bytes:
        """Ask a controller with the Identify command (NVMe base specification 2.0, 5.17).

        :param controller: its character device, "/dev/nvme3".
        :param cns: 0 for the data of a namespace, 2 for the active ones, 3 for the identifiers.
        :returns: 4096 bytes.
        :raises OSError: as the kernel answers; EIO when the controller refused.
        """

    def read(self, device: str, offset: int, length: int) -> bytes:
        """Read from a block device past the page cache; offset and length in multiples of 4096.

        :raises OSError: as the kernel answers.
        """

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link below /dev/md, in place of one that is there, or remove it.

        :param path: "/dev/md/name".
        :param target: name of the array's block device, "md127"; "" to remove the link.
        :raises OSError: as the kernel answers; EEXIST when something else is there.
        """

    def run(self, *argv: str, timeout: float = 30.0) -> str:
        """Run a command as root, in the C locale, and return its standard output.

        :raises CommandError: on any exit code but 0, on time-out, when it cannot be started.
        """
