# SPDX-License-Identifier: Apache-2.0
"""Console script ``kumo-node``: ``run`` serves the API, ``check`` says what is wrong."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from oslo_config import cfg
from oslo_log import log

from kumo_client import errors
from kumo_node import app, conf, heartbeat, kernel
from kumo_node.auth import Tokens
from kumo_node.calibrate import READ_ONLY, SCRATCH, Calibration
from kumo_node.executor import SubprocessExecutor
from kumo_node.service import Node, version
from kumo_node.spec import LAYOUT_DISK

_FIO_SECONDS = 1800.0
LOG = log.getLogger(__name__)
COMMANDS = (
    "lvm", "lvs", "dmsetup", "lsblk", "wipefs", "blkdiscard", "dd", "modprobe", "udevadm",
)  # fmt: skip


class Server(uvicorn.Server):
    """Tells systemd when the API can be reached."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            kernel.notify("READY=1")


def check_tls(options: cfg.ConfigOpts) -> None:
    """:raises ConfigError: certificate or key cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert_file, options.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise errors.ConfigError(
            f"Options tls_cert_file, tls_key_file: {options.tls_cert_file}: {error}",
            way_out="kumo-provisioner init makes certificates for nodes",
        ) from error


def serve(options: cfg.ConfigOpts) -> None:
    """Run until a signal.

    :raises KumoError: the node cannot serve.
    """
    check_tls(options)
    tokens = Tokens(options.token_file)
    node = Node(options)
    try:
        for problem in node.prepare():
            LOG.warning("Not restored yet: %s", problem)
        node.start()
        _begin_heartbeats(node, options)
        config = uvicorn.Config(
            app.make(node, tokens),
            host=options.listen_address,
            port=options.listen_port,
            ssl_certfile=options.tls_cert_file,
            ssl_keyfile=options.tls_key_file or options.tls_cert_file,
            log_config=None,
            access_log=False,
            server_header=False,
            # A call that is under way may hold an intent: give it time to end.
            timeout_graceful_shutdown=options.command_timeout,
        )
        LOG.info("Node %s serves on port %d", node.ctx.persistent_id, options.listen_port)
        # Uvicorn repeats the signal when it is done, to the handlers that were there before.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)
        Server(config).run()
    finally:
        node.close()


def _begin_heartbeats(node: Node, options: cfg.ConfigOpts) -> None:
    try:
        provisioner = heartbeat.receiver(options, node.version)
    except errors.KumoError as error:
        # The volumes of this node are worth more than its heartbeats.
        LOG.error("No heartbeats: %s", error.description)
        return
    if provisioner is not None:
        node.tell(provisioner)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def check(options: cfg.ConfigOpts) -> list[str]:
    """Look at everything ``run`` needs; disks are not changed.

    :returns: what is wrong, one sentence each.
    """
    problems = [f"Command {name} is not installed" for name in COMMANDS if not shutil.which(name)]

    def attempt(step: Callable[[], object]) -> bool:
        try:
            step()
        except errors.KumoError as error:
            problems.append(error.description)
            return False
        return True

    attempt(lambda: check_tls(options))
    attempt(lambda: Tokens(options.token_file))
    attempt(lambda: heartbeat.receiver(options, version()))
    nodes: list[Node] = []
    if attempt(lambda: nodes.append(Node(options))):
        node = nodes[0]
        attempt(lambda: node.ctx.kernel.load(node.ctx.portals))
        attempt(lambda: problems.extend(_disk_problems(node, options)))
        node.close()
    return problems


def _disk_problems(node: Node, options: cfg.ConfigOpts) -> list[str]:
    seen = node.ctx.pools.look(node.disks, options.disks, options.wipe_disks)
    todo = seen.plan
    for disk in todo.wipe:
        print(f"{disk.path} will be WIPED at the next start: {disk.reason}")
    for disk in todo.add:
        what = "get a pool of its own" if seen.layout == LAYOUT_DISK else "be added to the pool"
        print(f"{disk.path} will {what} at the next start")
    if not seen.in_service:
        return list(todo.problems)
    for problem in todo.problems:
        print(f"{problem}; the node starts without it")
    return []


def measure(options: cfg.ConfigOpts) -> None:
    """``kumo-node calibrate``.

    :raises KumoError: it cannot be done, or not all of it.
    """
    if bool(options.disk) == options.all:
        raise errors.InvalidInputError("Say which disks: --all, or --disk PATH for each")
    if options.read_only and options.scratch:
        raise errors.InvalidInputError("--read-only and --scratch exclude each other")
    if not shutil.which("fio"):
        raise errors.ConfigError("Command fio is not installed", way_out="Debian: fio")
    node = Node(options)
    try:
        node.prepare()
        # Filling a slow disk takes minutes.
        executor = SubprocessExecutor(_FIO_SECONDS)
        how = READ_ONLY if options.read_only else SCRATCH
        Calibration(node, executor, how=how, seconds=options.seconds, force=options.force).run(
            options.disk
        )
    finally:
        node.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    :returns: 0; 1 when the node cannot serve or something is wrong.
    """
    try:
        options = conf.load(sys.argv[1:] if argv is None else argv)
    except cfg.Error as error:
        print(f"kumo-node: {error}", file=sys.stderr)
        return 1
    log.setup(options, "kumo-node", version())
    try:
        if options.command == "check":
            problems = check(options)
            for problem in problems:
                print(problem, file=sys.stderr)
            print("not ready to run" if problems else "ready to run")
            return 1 if problems else 0
        if options.command == "calibrate":
            measure(options)
            return 0
        serve(options)
    except errors.KumoError as error:
        LOG.error("%s", error)
        print(f"kumo-node: {error.description}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
