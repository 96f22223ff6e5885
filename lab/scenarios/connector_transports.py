# SPDX-License-Identifier: Apache-2.0
"""The connector over TCP, IPv6 and RDMA, with keys and TLS: the machine is its own storage."""

from __future__ import annotations

import base64
import contextlib
import random
import time
import zlib
from collections.abc import Iterator
from typing import Any

from lab import brick_site
from lab.compute import Brick, BrickError
from lab.scenario import Context, Needs
from lab.scenarios._connector import GIB, Host
from lab.scenarios._nvmet import PORT, RDMA4, RDMA6, TCP4, TCP6, Nvmet, Volume, address
from os_brick_nvmeof.conf import GROUP

SUMMARY = "connector: TCP and RDMA over IPv4 and IPv6, DH-HMAC-CHAP, TLS; one machine, any kernel"
NEEDS = Needs(storage=0, compute=1)
IN_ALL = False
# What a refusal may take on an emulated processor.
_REFUSED_SECONDS = 20.0
_LOST_SECONDS = 30.0
_SINGLE = (
    Volume("TCP, IPv4", ((TCP4,),)),
    Volume("TCP, IPv6", ((TCP6,),)),
    Volume("TCP, IPv4 and IPv6 with multipath", ((TCP4, TCP6),)),
    Volume("RDMA, IPv4", ((RDMA4,),)),
    Volume("RDMA, IPv4 and IPv6 with multipath", ((RDMA4, RDMA6),)),
    Volume("TCP, IPv4, two legs", ((TCP4,), (TCP4,))),
    Volume("TCP, IPv6, two legs", ((TCP6,), (TCP6,))),
    Volume("RDMA, IPv4, two legs", ((RDMA4,), (RDMA4,))),
    Volume("a leg over TCP and one over RDMA", ((TCP6,), (RDMA6,))),
)
_FAULTS = Volume("faults", ((TCP4,), (TCP4,)))
_SECURE = Volume("secure", ((TCP4,),))


def run(ctx: Context) -> None:
    """Take volumes through their life over each transport, then with keys and TLS."""
    trial = _Trial(ctx)
    trial.start()
    try:
        for volume in _SINGLE:
            _life(trial, volume)
        _faults(trial)
        _dead_rdma(trial)
        _tls(trial)
        _keys(trial)
    finally:
        if not ctx.keep:
            trial.stop()


class _Trial(Host):
    """A machine that is host and storage at once."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx, brick_site.OURS)
        self.nvmet = Nvmet(self.machine)
        self.brick = Brick(self.machine, self.edition)

    def start(self) -> None:
        with self.ctx.step("nvmet over TCP and soft-RoCE, and os-brick"):
            self.nvmet.start()
            for volume in (*_SINGLE, _FAULTS, _SECURE):
                self.nvmet.export(volume)
            self.brick.start()
            self.brick.call("talk")
        self.ctx.note(self.run("uname -r").strip())

    def stop(self) -> None:
        self.brick.stop()
        self.nvmet.clear()

    def connect(self, data: dict[str, Any], multipath: bool = False) -> float:
        """Attach; ``data`` gets the path, as Nova keeps it. The answer is in seconds."""
        found, seconds = self.brick.call("connect", data=data, multipath=multipath)
        data["device_path"] = found["path"]
        return seconds

    def disconnect(self, data: dict[str, Any]) -> float:
        """Detach; nothing may be left. The answer is in seconds."""
        _, seconds = self.brick.call("disconnect", data=data, force=False)
        self.check_empty()
        return seconds

    def refused(self, data: dict[str, Any], *words: str) -> str:
        """Attaching fails in bounded time with an error that has these words; nothing is left."""
        begin = time.monotonic()
        try:
            self.connect(data)
        except BrickError as error:
            text = str(error)
        else:
            self.ctx.check(False, f"attached as {data['device_path']}")
        seconds = time.monotonic() - begin
        self.ctx.note(f"{seconds:.1f} s: {text[:400]}")
        missing = [word for word in words if word not in text]
        self.ctx.check(not missing, f"the error lacks {missing}: {text}")
        self.ctx.check(seconds < _REFUSED_SECONDS, f"it took {seconds:.1f} s")
        self.check_empty()
        return text

    def clean(self, volume: Volume) -> dict[str, Any]:
        """What is told of an array that was stopped in order."""
        data = volume.data("clean")
        for node, leg in enumerate(data["kumo"]["replicas"], 1):
            leg |= {"freshness": "fresh", "events": self.nvmet.events(volume, node)}
        return data


def _life(trial: _Trial, volume: Volume) -> None:
    """Attach, write, again, detach, attach, extend, detach."""
    ctx = trial.ctx
    legs, multipath = len(volume.legs), len(volume.legs[0]) > 1
    with ctx.step(volume.name):
        data = volume.data("new" if legs > 1 else "")
        times = [trial.connect(data, multipath)]
        wanted = sorted(
            address(node, kind) for node, kinds in enumerate(volume.legs, 1) for kind in kinds
        )
        seen = sorted(each.address for each in trial.controllers() if each.state == "live")
        ctx.check(seen == wanted, f"connected to {seen} instead of {wanted}")
        ctx.check(trial.size(data["device_path"]) == GIB, "not of the size that was asked for")
        wrote = trial.write(data["device_path"], volume.uuid)
        trial.connect(data, multipath)
        times.append(trial.disconnect(data))
        data = trial.clean(volume) if legs > 1 else volume.data()
        times.append(trial.connect(data, multipath))
        ctx.check(trial.digest(data["device_path"]) == wrote, "it has other data")
        trial.nvmet.resize(volume, 2)
        data["kumo"]["capacity"] = 2
        told, seconds = trial.brick.call("extend", data=data)
        times.append(seconds)
        size = trial.size(data["device_path"])
        ctx.check(told == size == 2 * GIB, f"{size} bytes after an extend, told {told}")
        ctx.check(trial.digest(data["device_path"]) == wrote, "extend changed data")
        times.append(trial.disconnect(data))
    shown = "attach {:.2f}, detach {:.2f}, attach {:.2f}, extend {:.2f}, detach {:.2f} s"
    ctx.note(shown.format(*times))


@contextlib.contextmanager
def _refusing(trial: _Trial, node: int) -> Iterator[None]:
    trial.nvmet.refuse(node)
    try:
        yield
    finally:
        trial.nvmet.accept(node)


def _faults(trial: _Trial) -> None:
    """One leg of two away: at an attach, while attached, and with the newer data."""
    ctx = trial.ctx
    with ctx.step("two legs, one refuses connections: attached with the other"):
        data = _FAULTS.data("new")
        trial.connect(data)
        wrote = trial.write(data["device_path"], "first")
        trial.disconnect(data)
        data = trial.clean(_FAULTS)
        with _refusing(trial, 2):
            seconds = trial.connect(data)
            array = trial.array()
            ctx.check(array["degraded"] == "1", f"array: {array}")
            ctx.check(trial.digest(data["device_path"]) == wrote, "it has other data")
            trial.disconnect(data)
        ctx.note(f"{seconds:.1f} s")
    with ctx.step("a leg is lost while attached: I/O goes on over the other"):
        data = _FAULTS.data("open")
        trial.connect(data)
        trial.wait_whole()
        with _refusing(trial, 1):
            begin = time.monotonic()
            wrote = trial.write(data["device_path"], "second")
            ctx.note(f"written after {time.monotonic() - begin:.1f} s")
            _wait_degraded(trial)
            ctx.note(f"detached in {trial.disconnect(data):.1f} s")
    with ctx.step("the other is away, and this one has old data: refused"), _refusing(trial, 2):
        trial.refused(_FAULTS.data("open"), "Stale:", _FAULTS.uuid, _FAULTS.leg(2))
    with ctx.step("both are back: the newer data, and the array becomes whole"):
        data = _FAULTS.data("open")
        trial.connect(data)
        ctx.check(trial.digest(data["device_path"]) == wrote, "it has other data")
        trial.wait_whole()
        ctx.check(trial.digest(data["device_path"]) == wrote, "a rebuild changed data")
        trial.disconnect(data)


def _wait_degraded(trial: _Trial) -> None:
    deadline = time.monotonic() + _LOST_SECONDS
    while (array := trial.array())["degraded"] != "1":
        trial.ctx.check(time.monotonic() < deadline, f"the lost leg stays in: {array}")
        time.sleep(0.5)


def _dead_rdma(trial: _Trial) -> None:
    """Portals of RDMA are not asked by TCP before the kernel connects them."""
    with trial.ctx.step("RDMA where nobody listens: refused"):
        place, port = address(1, RDMA4), PORT + 1
        data = _SINGLE[3].data()
        data["volume_replicas"][0]["portals"] = [[place, port, "RoCEv2"]]
        trial.refused(data, "Unreachable:", data["vol_uuid"], f"rdma://{place}:{port}")


def _tls(trial: _Trial) -> None:
    """Nothing here can do TLS: no key in the kernel's key ring, and no tlshd."""
    with trial.ctx.step("TLS that cannot be had: refused"):
        trial.brick.call("configure", group=GROUP, options={"tls": True})
        try:
            trial.refused(_SECURE.data(), "TLS", _SECURE.uuid)
        finally:
            trial.brick.call("configure", group=GROUP, options={"tls": None})


def _keys(trial: _Trial) -> None:
    """The node asks for a key from now on."""
    ctx = trial.ctx
    host, controller, wrong = (_key(name) for name in ("host", "controller", "wrong"))
    if not trial.nvmet.authenticate(host, controller):
        with ctx.step("DH-HMAC-CHAP, which this kernel does not have: refused"):
            _configure(trial, host, controller)
            trial.refused(_SECURE.data(), "Security:", "cannot do dhchap_", _SECURE.uuid)
            _configure(trial, None, None)
        _unlogged(trial, host, controller)
        return
    cases = {
        "without a key": (None, None),
        "with a wrong key": (wrong, None),
        "with a wrong key of the node": (host, wrong),
        "with something that is no key": (host + "x", None),
    }
    for text, keys in cases.items():
        with ctx.step(f"DH-HMAC-CHAP {text}: refused"):
            _configure(trial, *keys)
            trial.refused(_SECURE.data(), "Security:", "dhchap_", _SECURE.uuid)
    with ctx.step("DH-HMAC-CHAP with both keys: attached"):
        _configure(trial, host, controller)
        data = _SECURE.data()
        seconds = trial.connect(data)
        trial.write(data["device_path"], "secure")
        trial.disconnect(data)
        _configure(trial, None, None)
        ctx.note(f"attach {seconds:.2f} s")
    _unlogged(trial, host, controller, wrong)


def _unlogged(trial: _Trial, *keys: str) -> None:
    """Neither the connector at its most talkative nor the kernel has written a key down."""
    # Not the whole journal: the guest's agent writes down commands, those with keys included.
    log = f"journalctl --no-pager _TRANSPORT=kernel + _SYSTEMD_UNIT={trial.brick.unit}.service"
    with trial.ctx.step("no key is in the log of the connector or the kernel"):
        patterns = " ".join(f"-e {key[10:40]}" for key in keys)
        trial.run("journalctl --sync")
        lines = trial.run(f"{log} | wc -l").strip()
        found = trial.run(f"{log} | grep -F {patterns} | head -3; true")
        trial.ctx.check(not found, f"a key is in the log: {found}")
        talk = trial.run(f"{log} | grep -c 'DEBUG:os_brick'; true").strip()
        trial.ctx.check(int(talk) > 0, "the connector has not written to the log at all")
        trial.ctx.note(f"{lines} lines, {talk} of them of the connector")


def _configure(trial: _Trial, host: str | None, controller: str | None) -> None:
    options = {"dhchap_secret": host, "dhchap_ctrl_secret": controller}
    trial.brick.call("configure", group=GROUP, options=options)


def _key(seed: str) -> str:
    """A key as NVMe base specification 2.0, section 8.13.5.8, writes it: with its CRC-32."""
    secret = random.Random(seed).randbytes(32)
    whole = secret + zlib.crc32(secret).to_bytes(4, "little")
    return f"DHHC-1:00:{base64.b64encode(whole).decode()}:"
