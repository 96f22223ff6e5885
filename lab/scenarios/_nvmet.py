# SPDX-License-Identifier: Apache-2.0
"""Storage nodes that are addresses of the compute machine itself: nvmet over TCP and RDMA.

RDMA is soft-RoCE (rdma_rxe). The layout is that of drivers/nvme/target/configfs.c.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from kumo_client import naming
from lab import connection
from lab.errors import LabError
from lab.machine import Machine

PORT = 4420
TCP4, TCP6, RDMA4, RDMA6 = "tcp4", "tcp6", "rdma4", "rdma6"
KINDS = (TCP4, TCP6, RDMA4, RDMA6)
NODES = (1, 2)
# Each transport and address of a node is a port of nvmet.
_PREFIXES = {"4": "10.78.0.", "6": "fd78::"}
_DEVICE, _RXE = "kumo0", "kumorxe"
_NVMET = "/sys/kernel/config/nvmet"
_FILES = "/run/kumo-legs"
_NAMESPACE = uuid.UUID("5d1f0b86-8a0e-5c0f-9a43-6a0a8f0a7c11")
_MODULES = "nvmet-tcp nvme-tcp dummy loop raid1"
_RDMA_MODULES = "nvmet-rdma nvme-rdma rdma_rxe"
# Where the event counter is in a leg's md superblock (include/uapi/linux/raid/md_p.h).
_EVENTS_AT = 4096 + 200


def address(node: int, kind: str) -> str:
    """Address of a storage node."""
    return f"{_PREFIXES[kind[-1]]}{node}"


@dataclass(frozen=True)
class Volume:
    """A volume for one case.

    :ivar legs: of each leg, its portals, one of :data:`KINDS` each; leg n is on node n. All portals
        of a leg have one transport.
    """

    name: str
    legs: tuple[tuple[str, ...], ...]

    @property
    def uuid(self) -> str:
        """Of the volume."""
        return _uuid(self.name)

    def leg(self, node: int) -> str:
        """UUID of the leg on a node."""
        return _uuid(self.name, node)

    def nqn(self, node: int) -> str:
        """Of the subsystem with the leg on a node."""
        return f"nqn.2014-08.org.nvmexpress:uuid:{_uuid(self.name, node, 'nqn')}"

    def size(self, gib: int) -> int:
        """Bytes of each leg."""
        return naming.replica_bytes(gib, len(self.legs))

    def data(self, array_state: str = "") -> dict[str, Any]:
        """What the driver tells a host about it."""
        legs = [
            connection.Leg(
                self.leg(node),
                self.nqn(node),
                [address(node, kind) for kind in kinds],
                PORT,
                f"node{node}",
                "RoCEv2" if kinds[0] in (RDMA4, RDMA6) else "TCP",
            )
            for node, kinds in enumerate(self.legs, 1)
        ]
        info = connection.connection_info(self.uuid, f"v-{self.uuid}", 1, legs, array_state)
        return dict(info["data"])


class Nvmet:
    """What a machine exports to itself."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._host = machine.host_nqn

    def _run(self, *lines: str) -> str:
        return self._machine.run("set -e\n" + "\n".join(lines)).stdout

    def start(self) -> None:
        """Have addresses, devices and ports; what an earlier run has left goes first."""
        self.clear()
        lines = [
            f"modprobe -a {_MODULES} {_RDMA_MODULES}",
            f"[ -d {_NVMET} ] || mount -t configfs none /sys/kernel/config",
            f"mkdir -p {_FILES}",
            f"mount -t tmpfs -o size=512m none {_FILES}",
            f"ip link add {_DEVICE} type dummy",
            f"ip link set {_DEVICE} up",
        ]
        for node in NODES:
            lines += [
                f"ip address add {address(node, TCP4)}/24 dev {_DEVICE}",
                f"ip address add {address(node, TCP6)}/64 dev {_DEVICE} nodad",
            ]
        lines.append(f"rdma link add {_RXE} type rxe netdev {_DEVICE}")
        for node in NODES:
            for kind in KINDS:
                lines += self._port(node, kind)
        self._run(*lines)

    def _port(self, node: int, kind: str) -> list[str]:
        path = _port_path(node, kind)
        return [
            f"mkdir {path}",
            f"echo {kind[:-1]} >{path}/addr_trtype",
            f"echo ipv{kind[-1]} >{path}/addr_adrfam",
            f"echo {address(node, kind)} >{path}/addr_traddr",
            f"echo {PORT} >{path}/addr_trsvcid",
        ]

    def export(self, volume: Volume) -> None:
        """Offer all legs of a volume, 1 GiB of zeros, to this machine alone."""
        lines = [f"mkdir -p {_NVMET}/hosts/{self._host}"]
        for node, kinds in enumerate(volume.legs, 1):
            file = f"{_FILES}/{volume.leg(node)}"
            home = f"{_NVMET}/subsystems/{volume.nqn(node)}"
            space = f"{home}/namespaces/1"
            lines += [
                f"truncate -s {volume.size(1)} {file}",
                f"mkdir {home}",
                f"ln -s {_NVMET}/hosts/{self._host} {home}/allowed_hosts/",
                f"mkdir {space}",
                f"losetup --find --show {file} | tr -d '\\n' >{space}/device_path",
                f"echo {volume.leg(node)} >{space}/device_uuid",
                f"echo 1 >{space}/enable",
            ]
            lines += [f"ln -s {home} {_port_path(node, kind)}/subsystems/" for kind in kinds]
        self._run(*lines)

    def resize(self, volume: Volume, gib: int) -> None:
        """Let all legs grow."""
        lines = []
        for node, _ in enumerate(volume.legs, 1):
            space = f"{_NVMET}/subsystems/{volume.nqn(node)}/namespaces/1"
            lines += [
                f"truncate -s {volume.size(gib)} {_FILES}/{volume.leg(node)}",
                f"losetup -c $(cat {space}/device_path)",
                f"echo 1 >{space}/revalidate_size",
            ]
        self._run(*lines)

    def events(self, volume: Volume, node: int) -> int:
        """The md event counter of a leg."""
        file = f"{_FILES}/{volume.leg(node)}"
        return int(self._run(f"od -An -tu8 -j {_EVENTS_AT} -N 8 {file}"))

    def refuse(self, node: int) -> None:
        """Let a node refuse TCP connections, also those that there are."""
        self._run(f"iptables -I INPUT {_reset(node)}")

    def accept(self, node: int) -> None:
        """Let it take them again."""
        self._run(f"iptables -D INPUT {_reset(node)}")

    def authenticate(self, key: str, controller_key: str) -> bool:
        """Ask hosts for a DH-HMAC-CHAP key from now on, and prove the controller's own.

        :return: False if this kernel's nvmet cannot do that.
        """
        home = f"{_NVMET}/hosts/{self._host}"
        if self._machine.run(["test", "-e", f"{home}/dhchap_key"], check=False).returncode:
            return False
        self._run(
            f"echo {key} >{home}/dhchap_key",
            f"echo {controller_key} >{home}/dhchap_ctrl_key",
            f"echo ffdhe2048 >{home}/dhchap_dhgroup",
        )
        return True

    def clear(self) -> None:
        """Remove everything.

        :raises LabError: something stays.
        """
        done = self._machine.run(
            "iptables -F INPUT;"
            f"for l in {_NVMET}/ports/*/subsystems/*; do [ -L $l ] && rm $l; done;"
            f"for s in {_NVMET}/subsystems/*; do [ -d $s ] || continue;"
            " for n in $s/namespaces/*; do [ -d $n ] || continue; d=$(cat $n/device_path);"
            " echo 0 >$n/enable; rmdir $n; losetup -d $d; done;"
            " rm -f $s/allowed_hosts/*; rmdir $s; done;"
            f"rmdir {_NVMET}/hosts/* {_NVMET}/ports/*;"
            f"rdma link delete {_RXE}; ip link delete {_DEVICE};"
            f"umount {_FILES};"
            f"ls -d {_NVMET}/*/* {_FILES}/*; ip -o link show {_DEVICE}; true"
        )
        if done.stdout.strip():
            raise LabError(f"{self._machine.name} cannot be cleared: {done.stdout}{done.stderr}")


def _reset(node: int) -> str:
    match = f"-d {address(node, TCP4)} -p tcp --dport {PORT}"
    return f"{match} -j REJECT --reject-with tcp-reset"


def _port_path(node: int, kind: str) -> str:
    return f"{_NVMET}/ports/{node * 10 + KINDS.index(kind)}"


def _uuid(*words: Any) -> str:
    return str(uuid.uuid5(_NAMESPACE, " ".join(map(str, words))))
