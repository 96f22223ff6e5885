# SPDX-License-Identifier: Apache-2.0
"""Run scenarios one after the other on a lab that they share while it is fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.markup import escape
from rich.table import Table

from lab import failures
from lab.cluster import DISKS
from lab.progress import Progress
from lab.scenario import Context, Needs, Scenario

if TYPE_CHECKING:
    from lab.cluster import Lab


class Labs(Protocol):
    """What is needed of :class:`lab.cluster.Lab` itself."""

    def exists(self, name: str) -> bool: ...

    def load(self, name: str) -> Lab: ...

    def up(
        self,
        name: str,
        *,
        storage: int,
        compute: int,
        progress: Progress,
        kernel: str,
        ssds: int = ...,
        ssd_gib: int = ...,
        icount: bool = ...,
    ) -> Lab: ...


@dataclass(frozen=True)
class Outcome:
    """How a scenario ended.

    :param steps: number of steps that were done.
    :param error: None if it passed.
    :param evidence: where the logs of a failed one are.
    """

    scenario: str
    steps: int
    seconds: float
    error: str | None = None
    evidence: Path | None = None


class Runner:
    """Runs scenarios on the lab ``name``.

    A lab that was there before is used if it is fit, and left running if no scenario failed on it.

    :param labs: finds and makes labs.
    :param kernel: of the machines of a lab made here, "6.12" or "6.1".
    :param keep: leave the lab running in any case.
    :param directory: what failed scenarios leave goes below it.
    """

    def __init__(
        self,
        labs: Labs,
        name: str,
        progress: Progress,
        *,
        kernel: str,
        keep: bool = False,
        directory: Path = failures.DIRECTORY,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._labs, self._name, self._progress = labs, name, progress
        self._kernel, self._keep = kernel, keep
        self._directory, self._clock, self._now = directory, clock, now
        self._lab: Lab | None = None
        self._ours = not labs.exists(name)
        # A lab made here is large enough for all that is still to run, so that it is made once.
        self._planned = Needs(0, 0)
        self.outcomes: list[Outcome] = []

    def run(self, scenarios: Sequence[Scenario]) -> bool:
        """Run them in order; :attr:`outcomes` grows. Return whether all passed.

        The lab is down at the end, also when interrupted, unless it is to be kept.

        :raises LabError: the lab could not be taken down.
        """
        try:
            for number, scenario in enumerate(scenarios, 1):
                self._planned = Needs(0, 0)
                for later in scenarios[number:]:
                    if later.needs.icount == scenario.needs.icount:
                        self._planned = self._planned.union(later.needs)
                self._run(scenario, last=number == len(scenarios))
        except BaseException:
            if not self._keep:
                self._down()
            raise
        if self._ours and not self._keep:
            self._down()
        return all(outcome.error is None for outcome in self.outcomes)

    def _run(self, scenario: Scenario, last: bool) -> None:
        self._progress.say(f"\n{scenario.name}: {scenario.summary}")
        begin = self._clock()
        context = None
        failure = evidence = None
        try:
            self._lab = self._fit_lab(scenario.needs)
            context = Context(self._lab, self._progress, self._keep, self._clock)
            scenario.run(context)
        except Exception as error:  # noqa: BLE001 - a scenario fails in any way it likes
            failure = str(error) or type(error).__name__
            self._progress.say(f"{scenario.name} FAILED: {failure}")
            evidence = self._collect(scenario, error)
        steps = sum(step.ok for step in context.steps) if context else 0
        seconds = self._clock() - begin
        self.outcomes.append(Outcome(scenario.name, steps, seconds, failure, evidence))
        if failure is not None and not (last and self._keep):
            self._down()

    def _collect(self, scenario: Scenario, error: Exception) -> Path | None:
        with self._progress.step("collecting logs"):
            path = failures.collect(self._lab, scenario.name, error, self._directory, self._now)
        for line in failures.telling(path):
            self._progress.say(f"  {line}")
        self._progress.say(f"logs of {scenario.name}: {path.resolve()}")
        return path

    def _fit_lab(self, needs: Needs) -> Lab:
        """The running lab if it can be shared, else a new one, never smaller than one that was
        there before."""
        if self._labs.exists(self._name):
            # The same object as before: a guest's agent serves one connection at a time.
            lab = self._lab or self._labs.load(self._name)
            has = _machines(lab)
            enough = has.storage >= needs.storage and has.compute >= needs.compute
            clock = all(one.spec.icount == needs.icount for one in lab.machines.values())
            if enough and clock and self._has_disks(lab, needs) and self._fit(lab):
                return lab
            if not self._ours and clock:
                needs = needs.union(has)
            self._down()
        self._ours = True
        needs = needs.union(self._planned)
        return self._labs.up(
            self._name,
            storage=needs.storage,
            compute=needs.compute,
            progress=self._progress,
            kernel=self._kernel,
            **needs.disks(),
            **({"icount": True} if needs.icount else {}),
        )

    def _has_disks(self, lab: Lab, needs: Needs) -> bool:
        """Whether the storage machines have just the disks that are wanted.

        A lab that was there before is taken with any, by who says nothing of disks.
        """
        wanted = (DISKS if self._ours else {}) | needs.disks()
        return all(
            getattr(machine.spec, name) == value
            for name, value in wanted.items()
            for machine in lab.storage
        )

    def _fit(self, lab: Lab) -> bool:
        """Whether it has our kernel and no scenario has left a machine off, paused or hung."""
        same = lab.kernel.startswith(f"{self._kernel}.")
        return same and all(machine.state() == "running" for machine in lab.machines.values())

    def _down(self) -> None:
        if self._labs.exists(self._name):
            with self._progress.step("taking the lab down"):
                (self._lab or self._labs.load(self._name)).down()
        self._lab = None
        self._ours = True


def _machines(lab: Lab) -> Needs:
    roles = [machine.role for machine in lab.machines.values()]
    return Needs(roles.count("storage"), roles.count("compute"))


def summary(outcomes: Sequence[Outcome]) -> Table:
    """The table that ends a run."""
    table = Table("scenario", "steps", "seconds", "result")
    for outcome in outcomes:
        result = "[green]passed[/]" if outcome.error is None else "[bold red]FAILED[/]"
        if outcome.error is not None:
            result += f" {escape(outcome.error.splitlines()[0])}"
        table.add_row(outcome.scenario, str(outcome.steps), f"{outcome.seconds:.1f}", result)
    table.columns[1].justify = table.columns[2].justify = "right"
    return table
