# SPDX-License-Identifier: Apache-2.0
"""Measures attach and detach inside a virtual machine: stock, ours and two floors, interleaved.

Reads a plan (JSON) from standard input and writes one line of JSON for each measurement. Runs as
root; the services of both editions of os-brick (:mod:`lab.guest_brick`) run already, so that no
time goes into starting Python.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.guest_floor import Fabrics, Raw
from bench.guest_targets import Targets, run
from lab.guest_brick import socket_path

_IDLE_SECONDS = 10.0


class Brick:
    """A resident os-brick; the interface of :class:`bench.guest_floor.Raw`."""

    def __init__(self, edition: str) -> None:
        self._path = socket_path(edition)

    def _call(self, name: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._path)
            sock.sendall(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
            with sock.makefile() as stream:
                answer = json.loads(stream.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def connect(self, data: dict[str, Any], multipath: bool) -> str:
        path = str(self._call("connect", data=data, multipath=multipath)["path"])
        data["device_path"] = path
        return path

    def disconnect(self, data: dict[str, Any]) -> None:
        self._call("disconnect", data=data, force=False)

    def extend(self, data: dict[str, Any], path: str, size: int) -> None:
        self._call("extend", data=data)


MAKERS: dict[str, Callable[[], Any]] = {
    "stock": lambda: Brick("stock"),
    "ours": lambda: Brick("ours"),
    "raw": Raw,
    "fabrics": Fabrics,
}


class Case:
    """One thing to measure.

    :param plan: ``name``; ``volumes``: connection information; ``multipath``; ``size`` and
        ``grown``: bytes of a leg before and after an extend (``grown`` 0: none); ``again``:
        whether to attach once more while attached; ``create``: whether the first attach makes an
        array and a second one assembles it; ``dead``: address that the second leg has then.
    """

    def __init__(self, plan: dict[str, Any], targets: Targets) -> None:
        self.plan, self._targets = plan, targets
        self._paths: list[str] = []

    def measure(self, subject: Any, tell: Callable[[str, float], None]) -> None:
        """Take the volumes through their life once."""
        plan = self.plan
        volumes = json.loads(json.dumps(plan["volumes"]))
        self._blank(volumes)
        self._all(subject.connect, volumes, tell, "create" if plan["create"] else "connect")
        if plan["again"] and isinstance(subject, Brick):
            self._all(subject.connect, volumes, tell, "connect again")
        if plan["create"]:
            self._use()
            self._all_of(subject.disconnect, volumes, tell, "disconnect")
            self._record(volumes)
            self._all(subject.connect, volumes, tell, "re-attach")
        if plan["grown"]:
            self._extend(subject, volumes, tell)
        self._all_of(subject.disconnect, volumes, tell, "disconnect")

    def _blank(self, volumes: list[dict[str, Any]]) -> None:
        for leg in self.plan["legs"] if self.plan["create"] else []:
            self._targets.wipe(leg)
        for volume in volumes if self.plan["create"] else []:
            volume["kumo"]["array_state"] = "new"

    def _use(self) -> None:
        """Write to each array once: one that was never written may be made again."""
        for path in self._paths:
            run("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "oflag=direct,sync")

    def _record(self, volumes: list[dict[str, Any]]) -> None:
        """What the provisioner knows of arrays that were stopped in order."""
        for volume in volumes:
            volume["kumo"]["array_state"] = "clean"
            for leg in volume["kumo"]["replicas"]:
                leg |= {"freshness": "fresh", "events": self._targets.events(leg["uuid"])}
            if self.plan["dead"]:
                volume["volume_replicas"][1]["portals"][0][0] = self.plan["dead"]

    def _all(self, call: Any, volumes: list[Any], tell: Callable[..., None], what: str) -> None:
        multipath = self.plan["multipath"]
        self._all_of(lambda volume: call(volume, multipath), volumes, tell, what)

    def _all_of(self, call: Any, volumes: list[Any], tell: Callable[..., None], what: str) -> None:
        with ThreadPoolExecutor(len(volumes)) as pool:
            begin = time.monotonic()
            results = list(pool.map(call, volumes))
            tell(what, time.monotonic() - begin)
        self._paths = results if results[0] is not None else self._paths

    def _extend(self, subject: Any, volumes: list[Any], tell: Callable[..., None]) -> None:
        plan = self.plan
        for leg in plan["legs"]:
            self._targets.resize(leg, plan["grown"])
        for volume in volumes:
            volume["kumo"]["capacity"] += 1
        begin = time.monotonic()
        subject.extend(volumes[0], self._paths[0], volumes[0]["kumo"]["capacity"] << 30)
        tell("extend", time.monotonic() - begin)

    def restore(self) -> None:
        """Give grown legs their first size again."""
        for leg in self.plan["legs"] if self.plan["grown"] else []:
            self._targets.resize(leg, self.plan["size"])


def clear() -> list[str]:
    """Remove what a subject has left; the answer says what that was."""
    left = [path.name for path in Path("/sys/class/nvme-fabrics/ctl").glob("nvme*")]
    arrays = [path.name for path in Path("/sys/block").glob("md*")]
    for name in arrays:
        subprocess.run(["mdadm", "--stop", f"/dev/{name}"], capture_output=True)
    for name in left:
        with contextlib.suppress(OSError):
            Path(f"/sys/class/nvme/{name}/delete_controller").write_text("1")
    return left + arrays


def settle() -> None:
    """Wait until udev has nothing to do, so that nothing of one subject falls to the next."""
    subprocess.run(["udevadm", "settle", f"--timeout={_IDLE_SECONDS:.0f}"], capture_output=True)


def main() -> None:
    """Carry the plan out."""
    plan = json.load(sys.stdin)
    targets = Targets()
    for leg in plan["targets"]:
        targets.add(leg["uuid"], leg["nqn"], leg["addresses"], leg["size"], leg["block"])
    for address in plan["silent"]:
        run("iptables", "-A", "INPUT", "-d", address, "-j", "DROP")
    for case in (Case(item, targets) for item in plan["cases"]):
        subjects = {name: MAKERS[name]() for name in case.plan["subjects"]}
        # Round 0 warms caches up.
        for round_ in range(plan["rounds"] + 1):
            for name, subject in subjects.items():
                _one(case, name, subject, round_)


def _one(case: Case, name: str, subject: Any, round_: int) -> None:
    about = {"case": case.plan["name"], "subject": name, "round": round_}

    def tell(what: str, seconds: float) -> None:
        print(json.dumps(about | {"what": what, "seconds": seconds}), flush=True)

    settle()
    try:
        case.measure(subject, tell)
    except Exception as error:  # noqa: BLE001 - a subject fails in any way it likes
        print(json.dumps(about | {"error": f"{type(error).__name__}: {error}"}), flush=True)
    left = clear()
    if left:
        print(json.dumps(about | {"left": left}), flush=True)
    case.restore()


if __name__ == "__main__":
    main()
