# SPDX-License-Identifier: Apache-2.0
"""A compute host as Nova runs it: attachments through Cinder's API, devices through os-brick."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab import brick_site
from lab.errors import LabError
from lab.guest_brick import socket_path
from lab.machine import Machine

DEFAULT_EDITION = brick_site.OURS
_READY_SECONDS = 300.0
CALL_SECONDS = 300.0


class BrickError(LabError):
    """The connector of a compute host raised an error."""


@dataclass
class Attachment:
    """An attached volume. ``seconds`` is the connector's own time."""

    identifier: str
    volume: str
    data: dict[str, Any]
    device: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def path(self) -> str:
        """The block device in the guest."""
        return str(self.device["path"])


class Brick:
    """os-brick in a compute machine, reached through its guest agent.

    :param edition: one of :data:`lab.brick_site.EDITIONS`.
    :param patience: seconds after which a call is given up.
    """

    def __init__(self, machine: Machine, edition: str, patience: float = CALL_SECONDS) -> None:
        self._machine = machine
        self.edition = edition
        self.unit = f"kumo-brick-{edition}"
        self._socket = socket_path(edition)
        self._patience = patience

    def start(self) -> None:
        """Start the resident connector unless it runs, and wait until it listens.

        :raises LabError: it did not come up.
        """
        if not self._active():
            # A socket that a dead service left would be taken for that of the new one.
            path = f"{brick_site.guest_path(self.edition)}:/opt/kumo/src:/opt/kumo/site"
            service = (
                f"env PYTHONPATH={path} /usr/bin/python3 -m lab.guest_brick"
                f" {self._machine.address} {self.edition}"
            )
            self._machine.run(
                f"rm -f {self._socket} && systemd-run --collect --unit {self.unit} {service}"
            )
        deadline = time.monotonic() + _READY_SECONDS
        while self._machine.run(["test", "-S", self._socket], check=False).returncode:
            if not self._active() or time.monotonic() > deadline:
                log = self._machine.run(f"journalctl -u {self.unit} -n 20 --no-pager -o cat")
                raise LabError(f"{self._machine.name}: os-brick did not start:\n{log.stdout}")
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop it; fine when it does not run."""
        self._machine.run(["systemctl", "stop", self.unit], check=False)

    def _active(self) -> bool:
        active = self._machine.run(["systemctl", "is-active", "-q", self.unit], check=False)
        return active.returncode == 0

    def call(self, name: str, **arguments: Any) -> tuple[Any, float]:
        """Call a method of :class:`lab.guest_brick.Brick`.

        :return: its result and the seconds it took in the guest.
        :raises BrickError: it raised, or the service died over it.
        """
        return self._ask(name, {"call": name, "arguments": arguments})

    def call_killed(self, name: str, seconds: float, **arguments: Any) -> bool:
        """Call a method in a process that gets a SIGKILL after so many seconds.

        :return: whether it was done before.
        :raises BrickError: the service died over it.
        """
        request = {"call": name, "arguments": arguments, "kill_after": seconds}
        return bool(self._ask(name, request)[0])

    def _ask(self, name: str, body: dict[str, Any]) -> tuple[Any, float]:
        request = json.dumps(body) + "\n"
        # The module alone, without its packages: this interpreter lives for one question.
        argv = ["/usr/bin/python3", "-ISE", "/opt/kumo/src/lab/guest_ask.py", self._socket]
        done = self._machine.run(argv, input=request, timeout=self._patience)
        try:
            answer = json.loads(done.stdout)
        except ValueError as error:
            shown = (done.stdout + done.stderr)[-300:]
            raise BrickError(f"{self._machine.name}: {name}: no answer: {shown!r}") from error
        if "error" in answer:
            raise BrickError(f"{self._machine.name}: {name}: {answer['error']}")
        return answer["result"], float(answer["seconds"])


class Compute:
    """Attaches volumes to a compute machine in the order in which Nova does.

    :param request: ``(method, path, body) -> decoded answer`` of Cinder's volume API.
    :param edition: which os-brick it has, one of :data:`lab.brick_site.EDITIONS`.
    :param multipath: whether it connects to every portal (``volume_use_multipath`` of Nova).
    :param patience: seconds after which a call of the connector is given up.
    """

    def __init__(
        self,
        machine: Machine,
        request: Callable[..., Any],
        edition: str = DEFAULT_EDITION,
        multipath: bool = False,
        patience: float = CALL_SECONDS,
    ) -> None:
        self.machine = machine
        self.brick = Brick(machine, edition, patience)
        self.multipath = multipath
        self._request = request

    def start(self) -> None:
        """Start what has to be resident."""
        self.brick.start()

    def _call(self, name: str, **arguments: Any) -> tuple[Any, float]:
        return self.brick.call(name, **arguments, multipath=self.multipath)

    def reserve(self, volume: str) -> Attachment:
        """Make the attachment; nothing is connected yet.

        :raises BrickError: the connector does not tell who the host is.
        """
        properties, _ = self._call("properties")
        body = {"attachment": {"volume_uuid": volume, "connector": properties, "mode": "rw"}}
        made = self._request("POST", "/attachments", body)["attachment"]
        return Attachment(made["id"], volume, made["connection_info"])

    def attach(self, volume: str) -> Attachment:
        """Attach a volume: attachment with our connector, connect, complete.

        As Nova does, delete the attachment when the connector fails.

        :raises BrickError: the connector failed.
        """
        attachment = self.reserve(volume)
        try:
            self.connect(attachment)
        except LabError:
            self._request("DELETE", f"/attachments/{attachment.identifier}")
            raise
        self._request("POST", f"/attachments/{attachment.identifier}/action", {"os-complete": {}})
        return attachment

    def connect(self, attachment: Attachment) -> None:
        """Connect an attachment, also one that is connected.

        :raises BrickError: the connector failed.
        """
        attachment.device, attachment.seconds = self._call("connect", data=attachment.data)
        # Where Nova keeps the path for all later calls (nova/virt/libvirt/volume/nvme.py).
        attachment.data["device_path"] = attachment.path

    def extend(self, attachment: Attachment) -> int:
        """Let the host see the new size, as Nova does on the volume-extended event.

        :return: the size of the device in bytes.
        :raises BrickError: the connector failed.
        """
        size, attachment.seconds = self._call("extend", data=attachment.data)
        return int(size)

    def disconnect(self, attachment: Attachment, force: bool = False) -> None:
        """Disconnect; the attachment stays.

        :raises BrickError: the connector failed.
        """
        _, attachment.seconds = self._call("disconnect", data=attachment.data, force=force)

    def detach(self, attachment: Attachment) -> None:
        """Detach: disconnect, then delete the attachment.

        :raises BrickError: the connector failed; the attachment stays.
        """
        self.disconnect(attachment)
        self.forget(attachment)

    def together(self, name: str, attachments: list[Attachment], **more: Any) -> float:
        """Connect or disconnect attachments at the same time.

        :param name: ``connect`` or ``disconnect``.
        :return: the seconds that all took together.
        :raises BrickError: the connector failed for one of them; all are done.
        """
        arguments = {"multipath": self.multipath, **more}
        calls = [{"call": name, "arguments": {"data": x.data, **arguments}} for x in attachments]
        answers, seconds = self.brick.call("together", calls=calls)
        for attachment, answer in zip(attachments, answers, strict=True):
            attachment.seconds = answer["seconds"]
            if name == "connect" and "result" in answer:
                attachment.device = answer["result"]
                attachment.data["device_path"] = attachment.path
        failed = [answer["error"] for answer in answers if "error" in answer]
        if failed:
            raise BrickError(f"{self.machine.name}: {name}: {len(failed)} failed: {failed[0]}")
        return seconds

    def forget(self, attachment: Attachment) -> None:
        """Delete the attachment alone."""
        self._request("DELETE", f"/attachments/{attachment.identifier}")
