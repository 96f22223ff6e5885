# SPDX-License-Identifier: Apache-2.0
"""A check of the whole stack with the real ``openstack`` command.

The lab calls :func:`check` on a running stack. By hand, as root: ``python -m lab.openstack.check``
brings up a stack of its own, in a namespace of its own, over cinder's fake driver.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab.errors import ScenarioFailedError
from lab.openstack.cli import Cli
from lab.openstack.stack import Stack
from lab.processes import Processes

NAMESPACE = "kumo-oscheck"
ADDRESS = "10.77.0.1"
BACKEND = "fake"
# A driver of cinder's own tests that has no storage: it proves the chain down to a driver.
FAKE_BACKEND = {BACKEND: {"volume_driver": "cinder.tests.fake_driver.FakeLoggingVolumeDriver"}}

_AVAILABLE_SECONDS = 30
_IMAGE_BYTES = 1 << 20

Progress = Callable[[str], None]


class CheckFailedError(ScenarioFailedError):
    """The stack did not do what it should; the message says what was seen."""


def expect(seen: object, wanted: object, what: str) -> None:
    """Compare what was seen with what is wanted.

    :raises CheckFailedError: they differ.
    """
    if seen != wanted:
        raise CheckFailedError(f"{what}: expected {wanted!r}, saw {seen!r}")


def check(cli: Cli, backend: str, progress: Progress) -> None:
    """Use identity, image and block storage once, and leave nothing behind.

    :param backend: section name of a running cinder backend.
    :raises CheckFailedError: an answer is wrong.
    :raises lab.openstack.cli.CommandFailedError: a command failed.
    """
    steps = (_token, _services, _image, _volume)
    for step in steps:
        begin = time.monotonic()
        step(cli, backend)
        progress(f"{step.__name__.strip('_')}: ok, {time.monotonic() - begin:.1f} s")


def _token(cli: Cli, _backend: str) -> None:
    expect(bool(cli.json("token", "issue")["id"]), True, "token issued")


def _services(cli: Cli, backend: str) -> None:
    rows = cli.json("volume", "service", "list")
    seen = {(row["Binary"], row["Host"].rpartition("@")[2]): row["State"] for row in rows}
    expect(seen.get(("cinder-volume", backend)), "up", f"cinder-volume of {backend}")
    schedulers = [state for (binary, _), state in seen.items() if binary == "cinder-scheduler"]
    expect(schedulers, ["up"], "schedulers")


def _image(cli: Cli, _backend: str) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(range(256)) * (_IMAGE_BYTES // 256))
        file.flush()
        raw = ("--disk-format", "raw", "--container-format", "bare", "--file", file.name)
        image = cli.json("image", "create", *raw, "check")
    try:
        shown = cli.json("image", "show", image["id"])
        expect((shown["status"], shown["size"]), ("active", _IMAGE_BYTES), "image")
    finally:
        cli.run("image", "delete", image["id"])


def _volume(cli: Cli, backend: str) -> None:
    extra = ("--property", f"volume_backend_name={backend}")
    kind = cli.json("volume", "type", "create", *extra, "check")["id"]
    try:
        volume = cli.json("volume", "create", "--size", "1", "--type", kind, "check")["id"]
        expect(_settled(cli, volume), "available", "status of the new volume")
        cli.run("volume", "delete", volume)
        _wait_gone(cli, volume)
    finally:
        cli.run("volume", "type", "delete", kind)


def _settled(cli: Cli, volume: str) -> str:
    deadline = time.monotonic() + _AVAILABLE_SECONDS
    while True:
        status = str(cli.json("volume", "show", volume)["status"])
        if status != "creating" or time.monotonic() > deadline:
            return status


def _wait_gone(cli: Cli, volume: str) -> None:
    deadline = time.monotonic() + _AVAILABLE_SECONDS
    while volume in {row["ID"] for row in cli.json("volume", "list")}:
        if time.monotonic() > deadline:
            raise CheckFailedError(f"volume {volume} still listed after {_AVAILABLE_SECONDS} s")


def main() -> int:
    """Bring up a stack over the fake driver, check it, print times and memory, take it down."""
    _ip("netns", "add", NAMESPACE)
    try:
        _ip("-n", NAMESPACE, "link", "set", "lo", "up")
        _ip("-n", NAMESPACE, "address", "add", f"{ADDRESS}/32", "dev", "lo")
        with tempfile.TemporaryDirectory(prefix="kumo-oscheck-") as directory:
            _run(Path(directory))
    finally:
        _ip("netns", "delete", NAMESPACE)
    return 0


def _run(directory: Path) -> None:
    processes = Processes(directory, NAMESPACE)
    stack = Stack(processes, directory / "openstack", ADDRESS)
    try:
        stack.start(print)
        stack.start_volume(FAKE_BACKEND, print)
        check(Cli(stack.exports(), NAMESPACE), BACKEND, print)
        memory = stack.memory_kib()
        for name, seconds in stack.start_seconds.items():
            print(f"{name:18} ready after {seconds:5.1f} s, {memory[name] / 1024:5.0f} MiB")
        print(f"{'all':18} {sum(memory.values()) / 1024:24.0f} MiB")
    finally:
        stack.stop()
        processes.stop_all()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
