# SPDX-License-Identifier: Apache-2.0
"""Ends TCP connections of this host from outside, as ``ss --kill`` does.

The kernel's NVMe driver takes a connection that is ended for one that is lost and recovers at once
(``nvme_tcp_state_change``, drivers/nvme/host/tcp.c): what is under way fails or goes to another
path, and it connects again. Nothing else does so without waiting for the node:
``delete_controller`` and ``reset_controller`` send commands to it first or wait for I/O that is
under way, and a member of an array that is marked faulty still waits for the I/O that it has.

SOCK_DESTROY of sock_diag(7), Linux 4.5 with CONFIG_INET_DIAG_DESTROY; needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Protocol

from os_brick_nvmeof.props import Portal

# include/uapi/linux/netlink.h, sock_diag.h and inet_diag.h.
_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ESTABLISHED = 1 << 1
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 up to the id, and struct inet_diag_sockid: ports, addresses, interface,
# cookie. The answer has four bytes before the same id.
_REQUEST_HEAD = struct.Struct("=BBBBI")
_ID = struct.Struct("=2s2s16s16sI8s")
_ANSWER_HEAD = 4
_SECONDS = 2.0
_SIZE = 1 << 16


class Channel(Protocol):
    """What is needed of a netlink socket."""

    def send(self, data: bytes, /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


def channel() -> Channel:
    """A netlink socket for it. :raises OSError: the kernel has none."""
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )
    made.settimeout(_SECONDS)
    return made


def end(portal: Portal) -> int:
    """As :func:`cut`, over a socket of its own."""
    link = channel()
    try:
        return cut(portal, link)
    finally:
        link.close()


def cut(portal: Portal, link: Channel) -> int:
    """End this host's established TCP connections to a portal; those that are gone are fine.

    :returns: how many were ended.
    :raises OSError: EOPNOTSUPP when this kernel cannot, EPERM without the capability.
    """
    family = socket.AF_INET6 if ":" in portal.address else socket.AF_INET
    count = 0
    for number, one in enumerate(list(_connections(portal, family, link))):
        link.send(_message(_DESTROY, _REQUEST | _ACK, family, one, number + 2))
        problem = _acknowledged(link)
        if problem == 0:
            count += 1
        elif problem != errno.ENOENT:
            raise OSError(problem, f"{os.strerror(problem)}: SOCK_DESTROY", str(portal))
    return count


def prepare(link: Channel) -> None:
    """Have the kernel load what it needs for it: that takes a moment, which is short later.

    :raises OSError: this kernel has no sock_diag for TCP.
    """
    nobody = Portal("127.0.0.1", "1", "tcp")
    for _ in _connections(nobody, socket.AF_INET, link):
        pass


def _message(kind: int, flags: int, family: int, one: bytes, number: int) -> bytes:
    body = _REQUEST_HEAD.pack(family, socket.IPPROTO_TCP, 0, 0, _ESTABLISHED) + one
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def _connections(portal: Portal, family: int, link: Channel) -> Iterator[bytes]:
    """The ids of the connections."""
    port = struct.pack("!H", int(portal.port))
    address = socket.inet_pton(family, portal.address).ljust(16, b"\0")
    wanted = _ID.pack(b"\0\0", port, bytes(16), bytes(16), 0, b"\xff" * 8)
    link.send(_message(_BY_FAMILY, _REQUEST | _DUMP, family, wanted, 1))
    while True:
        for kind, body in _parts(link.recv(_SIZE)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"{os.strerror(number)}: sock_diag", str(portal))
            one = body[_ANSWER_HEAD : _ANSWER_HEAD + _ID.size]
            _, its_port, _, its_address, _, _ = _ID.unpack(one)
            if (its_port, its_address) == (port, address):
                yield one


def _acknowledged(link: Channel) -> int:
    """The errno of an answer; 0 when it was done."""
    for kind, body in _parts(link.recv(_SIZE)):
        if kind == _ERROR:
            return -int(struct.unpack_from("=i", body)[0])
    return errno.EPROTO


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Messages of one datagram (netlink(7))."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
