# SPDX-License-Identifier: Apache-2.0
"""A service to be started: what to run, and how to see that it is ready."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Service:
    """One child process of the stack.

    ``ready`` returns True when the service can be used, False when not yet; it may raise
    OSError (which requests' errors are) for "could not tell", read as not yet.
    """

    name: str
    argv: list[str]
    ready: Callable[[], bool]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    failure_marks: tuple[str, ...] = ()


def wsgi_argv(module: str, address: str, port: int, threads: int, *args: str) -> list[str]:
    """Command line that serves ``module``'s ``application`` with one process."""
    serve = [sys.executable, "-m", "lab.openstack.serve"]
    return [*serve, module, address, str(port), str(threads), *args]
