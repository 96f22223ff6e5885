# SPDX-License-Identifier: Apache-2.0
"""Console script ``kumo-agent``: ``run`` heals, ``status`` shows, ``plan`` says what would be."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from oslo_config import cfg
from oslo_log import log

from os_brick_nvmeof import conf as connector_conf
from os_brick_nvmeof import sysfs
from os_brick_nvmeof.agent import conf, plan, remember, status, user, vendor, watch
from os_brick_nvmeof.agent.loop import Agent
from os_brick_nvmeof.agent.means import HERE, Means
from os_brick_nvmeof.agent.metrics import Metrics
from os_brick_nvmeof.agent.model import Pace
from os_brick_nvmeof.agent.observe import MULTIPATH, Observer
from os_brick_nvmeof.agent.store import Store
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.locks import Locks

LOG = log.getLogger(__name__)
LOCK = "lock"


class StartError(Exception):
    """The agent cannot run; the text says why and what to do."""


# -- parts ----------------------------------------------------------------------------------------


def context(options: cfg.ConfigOpts) -> Context:
    """What attach and detach run in, too, as root in this very process.

    :raises StartError: an option is missing.
    """
    from os_brick import privileged, utils

    from os_brick_nvmeof.privileged import LocalHost

    if not options.kumo_agent.lock_path:
        raise StartError("set [kumo_agent] lock_path to the lock_path of nova-compute's os-brick")
    privileged.default.set_client_mode(False)
    try:
        host = LocalHost()
    except ImportError as error:
        raise StartError(
            f"{error}: install cinder-kumo into the directory that os-brick is in"
        ) from error
    nqn = utils.get_host_nqn() or ""
    if not nqn:
        raise StartError("this host has no NQN: install nvme-cli, see /etc/nvme/hostnqn")
    connector_conf.suit(options, os.uname().release)
    return Context(
        host=host,
        conf=options,
        host_nqn=nqn,
        host_id=utils.get_nvme_host_id(None) or "",
        multipath=sysfs.read(host.root / MULTIPATH) == "Y",
        locks=Locks(options.kumo_agent.lock_path),
    )


def enter(options: cfg.ConfigOpts) -> tuple[Context, Means]:
    """What the agent works with; the process is the user of the options from now on.

    It must be root, and have one thread, when the options name one.

    :raises StartError: with the way out.
    """
    try:
        chosen = user.account(options)
        ctx = context(options)
        if chosen is None:
            return ctx, HERE
        from os_brick_nvmeof.agent import rooted
        from os_brick_nvmeof.privileged import LocalHost

        if not options.kumo_agent.host_id:
            # Found by commands that only root can run.
            options.set_override("host_id", _root_uuid(), group=conf.GROUP)
        user.become(options, chosen, rooted.begin, rooted.CAPABILITIES)
        user.check(options, ctx.locks, chosen.name)
    except user.UserError as error:
        raise StartError(str(error)) from error
    return dataclasses.replace(ctx, host=LocalHost(far=rooted)), rooted.means(chosen.name)


def identity(options: cfg.ConfigOpts, ctx: Context) -> vendor.Identity:
    """:raises StartError: the host has no id."""
    return vendor.Identity(
        host_id=options.kumo_agent.host_id or _root_uuid(),
        nqn=ctx.host_nqn,
        name=options.kumo_agent.host_name or socket.gethostname(),
        multipath=ctx.multipath,
    )


def _root_uuid() -> str:
    """As os-brick finds it (``_get_host_uuid`` in nvmeof.py)."""
    from os_brick.initiator.connectors import nvmeof

    found = nvmeof.NVMeOFConnector(root_helper="")._get_host_uuid()
    if not found:
        raise StartError("the root file system has no UUID: set [kumo_agent] host_id")
    return str(found)


@contextlib.contextmanager
def only_one(directory: str) -> Iterator[None]:
    """Be the only agent of this host; the kernel ends that with the process.

    :raises StartError: there is another one.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (path / LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(f"another kumo-agent runs: {path / LOCK} is held") from error
        yield


def notify(state: str) -> None:
    """Tell systemd, as sd_notify(3), if it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        LOG.warning("systemd cannot be told %s: %s", state, error)


@contextlib.contextmanager
def on_signals(numbers: Iterable[signal.Signals], work: Callable[[], None]) -> Iterator[None]:
    """Have a thread call ``work`` when the first of these signals comes.

    A handler runs in the main thread wherever that is (the module ``signal`` of Python): also in
    the midst of clearing an event, which it could not set then without waiting for itself.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        # Nothing comes when the other end is closed.
        if ours.recv(1):
            work()

    waiting = threading.Thread(target=wait, name="signals", daemon=True)
    waiting.start()
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        waiting.join()
        ours.close()


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def _set_up_logs(options: cfg.ConfigOpts) -> None:
    log.setup(options, "kumo-agent")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    if options.kumo_agent.log_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())


def _tell_user(options: cfg.ConfigOpts, means: Means) -> None:
    if means.user:
        LOG.info("Runs as user %s; a daemon of its own does what needs root", means.user)
    elif not options.kumo_agent.user:
        LOG.warning(
            "Runs as root: set [kumo_agent] user to the user that nova-compute runs as, and only a"
            " small daemon is root"
        )


def make(options: cfg.ConfigOpts, ctx: Context, means: Means = HERE) -> Agent:
    """The agent of the options.

    :raises StartError: an option cannot be used.
    """
    chosen = options.kumo_agent
    metrics = Metrics()
    if chosen.metrics_port:
        metrics.serve(chosen.metrics_address, chosen.metrics_port)
    return Agent(
        ctx,
        _vendor(options, ctx),
        Store(chosen.state_dir),
        conf.limits(options),
        Pace(
            look=chosen.look_interval,
            busy=chosen.busy_interval,
            pull=chosen.pull_interval,
            probe=chosen.probe_interval,
            ask=chosen.node_probe_interval,
            parallel=chosen.parallel,
        ),
        metrics=metrics,
        means=means,
        publish=lambda shown: status.write(chosen.run_dir, shown),
    )


def _vendor(options: cfg.ConfigOpts, ctx: Context) -> vendor.Vendor:
    try:
        return vendor.load(options.kumo_agent.vendor)(options, identity(options, ctx))
    except vendor.VendorError as error:
        raise StartError(str(error)) from error


# -- verbs ----------------------------------------------------------------------------------------


def run(options: cfg.ConfigOpts, ctx: Context, means: Means = HERE, *, once: bool = False) -> None:
    """Heal until a signal; with ``once``, one round.

    :raises StartError: it cannot run, or not any more.
    """
    lost = threading.Event()
    with only_one(options.kumo_agent.state_dir):
        agent = make(options, ctx, means)
        if once:
            agent.once()
            return

        def end() -> None:
            lost.set()
            agent.stop()

        means.when_lost(end)
        with on_signals((signal.SIGTERM, signal.SIGINT), agent.stop):
            agent.start()
            seer = watch.Watch(
                ctx.host.root,
                agent.observer.states,
                agent.wake.set,
                options.kumo_agent.busy_interval,
                watch.udev_monitor(),
            )
            seer.start()
            notify("READY=1")
            LOG.info("Healing the volumes of this host")
            whole = agent.run(alive=lambda: notify("WATCHDOG=1"))
        notify("STOPPING=1")
        seer.stop()
        agent.vendor.close()
    if not whole:
        # The interpreter would wait for the threads of the pools, however long they hang.
        LOG.warning("What hangs is left behind: the agent ends")
        logging.shutdown()
        os._exit(int(lost.is_set()))
    if lost.is_set():
        raise StartError("its privileged daemon has ended, so it has to be started again")


def would_do(options: cfg.ConfigOpts, ctx: Context) -> dict[str, Any]:
    """What a round would do now; nothing is changed, and a running agent is not asked."""
    now = time.time()
    asked = _vendor(options, ctx)
    store = Store(options.kumo_agent.state_dir)
    memory, wanted = store.memory(), store.wanted()
    observer, limits = Observer(ctx), conf.limits(options)
    try:
        wanted = asked.pull(observer.look(wanted), now)
    except vendor.VendorError as error:
        LOG.warning("The provisioner is away; this is from its last answer: %s", error)
    seen = observer.look(wanted)
    memory = remember.look(memory, wanted, seen, now, limits)
    made = plan.make(wanted, seen, memory, now, limits)
    return status.make(wanted, memory, made, now)


def show(arguments: argparse.Namespace, options: cfg.ConfigOpts) -> None:
    """``kumo-agent status``.

    :raises StartError: there is nothing to show.
    """
    while True:
        try:
            shown = status.read(options.kumo_agent.run_dir)
        except (OSError, ValueError) as error:
            raise StartError(f"no status: {error}; is the agent running?") from error
        if arguments.watch and arguments.format == "table":
            print("\033[H\033[2J", end="")
        _print(arguments.format, shown, lambda one: status.table(one, time.time()))
        if not arguments.watch:
            return
        time.sleep(1.0)


def _print(form: str, shown: Mapping[str, Any], table: Callable[[Mapping[str, Any]], Any]) -> None:
    if form == "json":
        print(json.dumps(shown, indent=2))
    else:
        status.show(table(shown))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kumo-agent", description=__doc__)
    parser.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help=f"configuration file (default {conf.DEFAULT_FILE}); may be given several times",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    heal = commands.add_parser("run", help="heal the volumes of this host")
    heal.add_argument("--once", action="store_true", help="one round, then end")
    shown = commands.add_parser("status", help="show volumes, legs and what was done last")
    shown.add_argument("--watch", action="store_true", help="again each second")
    dry = commands.add_parser("plan", help="say what would be done now, and why; change nothing")
    for one in (shown, dry):
        one.add_argument("-f", "--format", choices=["table", "json"], default="table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``kumo-agent``."""
    arguments = _parser().parse_args(argv)
    try:
        options = conf.load(arguments.config_file)
        if arguments.command == "status":
            show(arguments, options)
            return 0
        if arguments.command == "plan":
            # Nothing beside the answer, but what is wrong.
            logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
            ctx, _ = enter(options)
            _print(arguments.format, would_do(options, ctx), status.plan_table)
        else:
            ctx, means = enter(options)
            # A log file is made by the user who writes it.
            _set_up_logs(options)
            _tell_user(options, means)
            run(options, ctx, means, once=arguments.once)
    except (StartError, cfg.Error, OSError) as error:
        print(f"kumo-agent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
