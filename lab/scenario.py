# SPDX-License-Identifier: Apache-2.0
"""Scenarios: what one is, what it is given, and which there are.

A scenario is a module of :mod:`lab.scenarios` with ``SUMMARY`` (one line), ``NEEDS`` (a
:class:`Needs`) and ``run(ctx)``, which gets a :class:`Context`. One with ``IN_ALL = False`` takes
long and is run by its name only.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, ScenarioFailedError, UsageError
from lab.progress import Progress, Task

if TYPE_CHECKING:
    from lab.cluster import Lab

PACKAGE = "lab.scenarios"


@dataclass(frozen=True)
class Needs:
    """What a scenario runs on: numbers of machines, and whether it starts OpenStack services.

    ``ssds`` of ``ssd_gib`` GiB each for a storage machine; None: as ``kumo-lab up`` gives them, or
    whatever a lab has that somebody made before. ``icount``: the clocks of the machines count
    instructions, so that times do not depend on how busy the lab's own machine is; for one machine.
    """

    storage: int = 3
    compute: int = 1
    openstack: bool = False
    ssds: int | None = None
    ssd_gib: int | None = None
    icount: bool = False

    def union(self, other: Needs) -> Needs:
        """Machines that are enough for both, with our own disks and clock: others fit only some."""
        return Needs(
            max(self.storage, other.storage),
            max(self.compute, other.compute),
            self.openstack or other.openstack,
            self.ssds,
            self.ssd_gib,
            self.icount,
        )

    def disks(self) -> dict[str, Any]:
        """What is wanted of the disks, by name."""
        wanted = {"ssds": self.ssds, "ssd_gib": self.ssd_gib}
        return {name: value for name, value in wanted.items() if value is not None}

    def __str__(self) -> str:
        text = f"{self.storage} storage, {self.compute} compute"
        if self.ssds:
            text += f", {self.ssds} SSDs"
        if self.ssd_gib:
            text += f", SSDs of {self.ssd_gib} GiB"
        if self.icount:
            text += ", clocks that count instructions"
        return f"{text}, OpenStack" if self.openstack else text


@dataclass(frozen=True)
class Step:
    """A step that was taken; ``seconds`` it took."""

    text: str
    seconds: float
    ok: bool


class Context:
    """What a scenario works with.

    :param lab: a running lab with at least the machines that the scenario needs.
    :param keep: the lab will be left running, so what the scenario started may stay, too.
    """

    def __init__(
        self,
        lab: Lab,
        progress: Progress,
        keep: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lab = lab
        self.progress = progress
        self.keep = keep
        self.steps: list[Step] = []
        self._clock = clock

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Task]:
        """One step of the scenario: a line with ok or FAILED and the seconds it took."""
        begin = self._clock()
        ok = False
        try:
            with self.progress.step(text) as task:
                yield task
            ok = True
        finally:
            self.steps.append(Step(text, self._clock() - begin, ok))

    def note(self, text: str) -> None:
        """Print something worth knowing, such as a measured time."""
        self.progress.say(f"{'':>17}{text}")

    def check(self, condition: object, message: str) -> None:
        """Go on only if ``condition`` is true.

        :raises ScenarioFailedError: it is not; ``message`` says what was seen.
        """
        if not condition:
            raise ScenarioFailedError(message)


@dataclass(frozen=True)
class Scenario:
    """A scenario of the registry."""

    name: str
    summary: str
    needs: Needs
    run: Callable[[Context], None]
    module: Any
    in_all: bool = True


class Registry:
    """The scenarios of a package.

    :param modules: names of the modules in it; by default those of :mod:`lab.scenarios`.
    :param load: imports a module by its name.
    """

    def __init__(
        self,
        modules: Iterable[str] | None = None,
        load: Callable[[str], Any] = lambda name: importlib.import_module(f"{PACKAGE}.{name}"),
    ) -> None:
        found = _modules() if modules is None else modules
        self._modules = {n.replace("_", "-"): n for n in found if not n.startswith("_")}
        self._load = load

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._modules)

    def get(self, name: str) -> Scenario:
        """The scenario of that name.

        :raises UsageError: there is none.
        :raises LabError: its module lacks something.
        """
        if name not in self._modules:
            raise UsageError(
                f"there is no scenario {name!r}", f"Scenarios: {', '.join(self.names())}."
            )
        module = self._load(self._modules[name])
        missing = [x for x in ("SUMMARY", "NEEDS", "run") if not hasattr(module, x)]
        if missing:
            raise LabError(f"scenario {name} has no {', '.join(missing)}")
        in_all = getattr(module, "IN_ALL", True)
        return Scenario(name, module.SUMMARY, module.NEEDS, module.run, module, in_all)

    def all(self) -> list[Scenario]:
        """Those that are not run by name only, which need most machines first: the rest can share
        their lab.

        Those that want other disks come last: they need a lab of their own.
        """
        found = [one for one in map(self.get, self.names()) if one.in_all]
        return sorted(
            found,
            key=lambda s: (
                s.needs.ssd_gib is not None,
                -s.needs.storage,
                -s.needs.compute,
                s.name,
            ),
        )


def _modules() -> list[str]:
    package = importlib.import_module(PACKAGE)
    return [module.name for module in pkgutil.iter_modules(package.__path__)]
