# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the lab, each error with the way out of it."""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors of the lab.

    :param message: one sentence for a person.
    :param way_out: what the reader can do about it.
    """

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message}\n{self.way_out}" if self.way_out else self.message


class PreflightError(LabError):
    """This machine lacks something that the lab needs; nothing has been made yet."""


class UsageError(LabError):
    """The command line asks for something that does not exist."""


class ProcessError(LabError):
    """A process could not be started or stopped."""


class ScenarioFailedError(LabError):
    """A scenario saw something else than it must see."""
