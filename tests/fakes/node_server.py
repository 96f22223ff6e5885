# SPDX-License-Identifier: Apache-2.0
"""A storage node for functional tests: the real API over HTTPS, on a fake LVM and configfs.

``python -m tests.fakes.node_server --root DIR --port N --cert FILE --token-file FILE``

State lives in ``DIR``; ``--size-mib`` is the size of its one disk. The fake LVM is in memory: a
server that ends takes its volumes with it.
"""

import argparse
import pathlib

import uvicorn

from kumo_node import app
from kumo_node.auth import Tokens
from tests.fakes.node import FakeMachine


class FakeNodeServer:
    """A node on a port of the loopback.

    :param cert: PEM file with certificate and key.
    :ivar machine: the machine behind it, to look into or to let fail.
    """

    def __init__(self, root, *, port, cert, token_file, size_mib=65536, name="storage-1"):
        self.machine = FakeMachine(
            root, hostname=name, token_file=token_file, portals=f"tcp://127.0.0.1:{port}"
        )
        for disk in self.machine.host.disks.values():
            disk.bytes = size_mib << 20
        self.machine.start()
        config = uvicorn.Config(
            app.make(self.machine.node, Tokens(str(token_file))),
            host="127.0.0.1",
            port=port,
            ssl_certfile=str(cert),
            ssl_keyfile=str(cert),
            log_config=None,
            access_log=False,
        )
        self.server = uvicorn.Server(config)

    def run(self):
        """Serve until told to stop: a signal, or ``server.should_exit``."""
        self.machine.node.restore.start()
        try:
            self.server.run()
        finally:
            self.machine.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert", type=pathlib.Path, required=True)
    parser.add_argument("--token-file", type=pathlib.Path, required=True)
    parser.add_argument("--size-mib", type=int, default=65536)
    parser.add_argument("--name", default="storage-1")
    args = parser.parse_args()
    FakeNodeServer(
        args.root,
        port=args.port,
        cert=args.cert,
        token_file=args.token_file,
        size_mib=args.size_mib,
        name=args.name,
    ).run()


if __name__ == "__main__":
    main()
