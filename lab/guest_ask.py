# SPDX-License-Identifier: Apache-2.0
"""Send standard input to a unix socket, and what it answers to standard output.

A program of its own, of built-in modules alone: it is started for each call to a resident service,
and without KVM an interpreter that imports ``socket`` takes most of a second to start.
"""

import _socket
import sys

_CHUNK = 65536


def main(path: str) -> None:
    """Ask once."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.connect(path)
    sock.sendall(sys.stdin.buffer.readline())
    sock.shutdown(_socket.SHUT_WR)
    while part := sock.recv(_CHUNK):
        sys.stdout.buffer.write(part)
    sock.close()


if __name__ == "__main__":
    main(sys.argv[1])
