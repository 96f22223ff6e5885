# SPDX-License-Identifier: Apache-2.0
"""The real ``openstack`` command, run where the stack can be reached."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from lab.errors import LabError
from lab.openstack import config

_TIMEOUT_SECONDS = 120


class CommandFailedError(LabError):
    """The command ended with an error; the message holds the command and what it printed."""


class Cli:
    """Runs ``openstack`` with the credentials of ``exports``.

    :param exports: the OS_* variables of :meth:`lab.openstack.stack.Stack.exports`.
    :param netns: the network namespace of the stack; None for the one we are in.
    """

    def __init__(self, exports: Mapping[str, str], netns: str | None) -> None:
        self._prefix = ["ip", "netns", "exec", netns] if netns else []
        self._env = {**config.clean_environment(), **exports}

    def run(self, *words: str) -> str:
        """Run ``openstack WORDS`` and return what it printed.

        :raises CommandFailedError: it failed, or took more than two minutes.
        """
        argv = [*self._prefix, str(config.BIN / "openstack"), *words]
        shown = "openstack " + " ".join(words)
        try:
            done = subprocess.run(
                argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"{shown}: no end after {_TIMEOUT_SECONDS} s") from error
        if done.returncode:
            raise CommandFailedError(f"{shown}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *words: str) -> Any:
        """Like :meth:`run` with ``-f json``; the decoded answer."""
        return json.loads(self.run(*words, "-f", "json"))

    def exists(self, *words: str) -> bool:
        """Whether ``openstack WORDS`` (a ``show``) finds its object.

        :raises CommandFailedError: it failed for another reason than the object's absence.
        """
        try:
            self.run(*words)
        except CommandFailedError as error:
            # "No volume found for x" (openstackclient, osc_lib.utils.find_resource) or the SDK's.
            if "No " in str(error) and " found for " in str(error):
                return False
            raise
        return True
