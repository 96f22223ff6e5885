# SPDX-License-Identifier: Apache-2.0
"""kumo-agent in a process of its own that can be killed, and its provisioner in ours.

The agent is what ``kumo-agent run`` starts, but for its provisioner: each call to that goes over a
unix socket to a :class:`~os_brick_nvmeof.agent.vendor.Vendor` in the process that started it.
Processes are forked from one that has everything imported, because an emulated processor needs half
a minute for that.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any
from unittest import mock

from os_brick_nvmeof.agent import conf, main, model, vendor
from os_brick_nvmeof.agent.vendor import News, VendorError

SOCKET = "/run/kumo-stories.sock"
LOG = "/run/kumo-stories-agent.log"
CALL_SECONDS = 5.0


class Remote(vendor.Vendor):
    """The agent's side."""

    def __init__(self, path: str = SOCKET, patience: float = CALL_SECONDS) -> None:
        self._path, self._patience = path, patience

    def _call(self, name: str, *arguments: Any, more: float = 0.0, **named: Any) -> Any:
        try:
            with Client(self._path) as link:
                link.send((name, arguments, named))
                if not link.poll(self._patience + more):
                    raise VendorError(f"{name}: no answer", away=True)
                answer, error = link.recv()
        except (OSError, EOFError) as problem:
            raise VendorError(f"{name}: {problem}", away=True) from problem
        if error is not None:
            raise error
        return answer

    def probe(self, *, seconds: int, abilities: Sequence[str]) -> None:
        self._call("probe", seconds=seconds, abilities=abilities)

    def pull(self, seen: model.Seen, now: float) -> model.Wanted:
        # What is seen is for makers who cannot list the volumes of a host.
        found: model.Wanted = self._call("pull", None, now)
        return found

    def report_leg(self, volume: model.Volume, leg: str, state: str) -> None:
        self._call("report_leg", volume, leg, state)

    def report_array(self, volume: model.Volume, legs: Sequence[tuple[str, str, int]]) -> None:
        self._call("report_array", volume, legs)

    def export(self, volume: model.Volume) -> None:
        self._call("export", volume)

    def request_replacement(self, volume: model.Volume, lost: str) -> str:
        return str(self._call("request_replacement", volume, lost))

    def retire(self, volume: model.Volume, leg: str) -> None:
        self._call("retire", volume, leg)

    def confirm(self, volume: model.Volume, leg: model.Leg) -> None:
        self._call("confirm", volume, leg)

    def report_task(self, task: str, *, state: str, status: str, progress: float) -> None:
        self._call("report_task", task, state=state, status=status, progress=progress)

    def task(self, uuid: str) -> model.Task | None:
        found: model.Task | None = self._call("task", uuid)
        return found

    def wait(self, since: int | None, seconds: int) -> News:
        found: News = self._call("wait", since, seconds, more=float(seconds))
        return found

    def tell(self, level: str, message: str, details: Mapping[str, Any]) -> None:
        self._call("tell", level, message, dict(details))


class Desk(threading.Thread):
    """The provisioner's side: answers what a :class:`Remote` asks.

    :ivar answers: cleared, calls are taken and not answered: it is frozen.
    :ivar away: calls are not taken.
    :ivar calls: names of all calls so far.
    """

    def __init__(self, asked: vendor.Vendor, path: str = SOCKET) -> None:
        super().__init__(name="desk", daemon=True)
        Path(path).unlink(missing_ok=True)
        self._asked, self._listener = asked, Listener(path)
        self.answers = threading.Event()
        self.answers.set()
        self.away = False
        self.calls: list[str] = []

    def run(self) -> None:
        """Until the process ends."""
        while True:
            link = self._listener.accept()
            if self.away:
                link.close()
            else:
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: Connection) -> None:
        try:
            with link:
                name, arguments, named = link.recv()
                self.calls.append(name)
                self.answers.wait()
                link.send(self._answer(getattr(self._asked, name), arguments, named))
        except (OSError, EOFError):
            # The agent was killed, or has waited for long enough.
            return

    def _answer(
        self, method: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[Any, VendorError | None]:
        try:
            return method(*arguments, **named), None
        except VendorError as error:
            return None, error


def run_agent(config: str) -> None:
    """What the agent's process does."""
    logging.basicConfig(
        filename=LOG, level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(name)s %(message)s"
    )
    options = conf.load([config])
    with mock.patch.object(main, "_vendor", return_value=Remote()):
        main.run(options, main.context(options))


class Agent:
    """Starts the agent, and ends it."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "os_brick.initiator.connectors.nvmeof"])
        self._process: Any = None

    def start(self) -> None:
        """As systemd does."""
        self._process = self._context.Process(target=run_agent, args=(self._config,))
        self._process.start()

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and bool(self._process.is_alive())

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """SIGTERM, unless there is none."""
        if self.alive():
            self._process.terminate()
            self._process.join()
