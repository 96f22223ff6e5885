# SPDX-License-Identifier: Apache-2.0
"""A compute host as Nova runs it: attachments through Cinder's API, devices through os-brick."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.errors import LabError
from lab.guest_brick import SOCKET
from lab.machine import Machine

_READY_SECONDS = 120.0
_CALL_SECONDS = 300.0


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
    """os-brick in a compute machine, reached through its guest agent."""

    UNIT = "kumo-brick"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def start(self) -> None:
        """Start the resident connector unless it runs, and wait until it listens.

        :raises LabError: it did not come up.
        """
        if not self._active():
            # A socket that a dead service left would be taken for that of the new one.
            service = f"kumo-python -m lab.guest_brick {self._machine.address}"
            self._machine.run(
                f"rm -f {SOCKET} && systemd-run --collect --unit {self.UNIT} {service}"
            )
        deadline = time.monotonic() + _READY_SECONDS
        while self._machine.run(["test", "-S", SOCKET], check=False).returncode:
            if not self._active() or time.monotonic() > deadline:
                log = self._machine.run(f"journalctl -u {self.UNIT} -n 20 --no-pager -o cat")
                raise LabError(f"{self._machine.name}: os-brick did not start:\n{log.stdout}")
            time.sleep(0.5)

    def _active(self) -> bool:
        active = self._machine.run(["systemctl", "is-active", "-q", self.UNIT], check=False)
        return active.returncode == 0

    def call(self, name: str, **arguments: Any) -> tuple[Any, float]:
        """Call a method of :class:`lab.guest_brick.Brick`.

        :return: its result and the seconds it took in the guest.
        :raises BrickError: it raised, or the service died over it.
        """
        request = json.dumps({"call": name, "arguments": arguments}) + "\n"
        # The module alone, without its packages: this interpreter lives for one question.
        argv = ["/usr/bin/python3", "-SE", "/opt/kumo/src/lab/guest_brick.py", "ask"]
        done = self._machine.run(argv, input=request, timeout=_CALL_SECONDS)
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
    """

    def __init__(self, machine: Machine, request: Callable[..., Any]) -> None:
        self.machine = machine
        self.brick = Brick(machine)
        self._request = request

    def start(self) -> None:
        """Start what has to be resident."""
        self.brick.start()

    def attach(self, volume: str) -> Attachment:
        """Attach a volume: attachment with our connector, connect, complete.

        As Nova does, delete the attachment when the connector fails.

        :raises BrickError: the connector failed.
        """
        properties, _ = self.brick.call("properties")
        body = {"attachment": {"volume_uuid": volume, "connector": properties, "mode": "rw"}}
        made = self._request("POST", "/attachments", body)["attachment"]
        attachment = Attachment(made["id"], volume, made["connection_info"])
        try:
            attachment.device, attachment.seconds = self.brick.call("connect", data=attachment.data)
        except LabError:
            self._request("DELETE", f"/attachments/{made['id']}")
            raise
        # Where Nova keeps the path for all later calls (nova/virt/libvirt/volume/nvme.py).
        attachment.data["device_path"] = attachment.path
        self._request("POST", f"/attachments/{made['id']}/action", {"os-complete": {}})
        return attachment

    def extend(self, attachment: Attachment) -> int:
        """Let the host see the new size, as Nova does on the volume-extended event.

        :return: the size of the device in bytes.
        :raises BrickError: the connector failed.
        """
        size, attachment.seconds = self.brick.call("extend", data=attachment.data)
        return int(size)

    def detach(self, attachment: Attachment) -> None:
        """Detach: disconnect, then delete the attachment.

        :raises BrickError: the connector failed; the attachment stays.
        """
        _, attachment.seconds = self.brick.call("disconnect", data=attachment.data, force=False)
        self._request("DELETE", f"/attachments/{attachment.identifier}")
