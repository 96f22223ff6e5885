# SPDX-License-Identifier: Apache-2.0
"""What each command of ``kumo-lab`` does."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lab.cleanup import interruptible
from lab.errors import UsageError
from lab.preflight import Plan, Preflight
from lab.progress import Progress
from lab.scenario import Needs, Registry, Scenario

if TYPE_CHECKING:
    from lab.cluster import Lab
    from lab.machine import Machine

Command = Callable[[Namespace], int]
TOUR = "tour"


def find(verb: str) -> Command:
    """The function that carries out ``verb``."""
    return _COMMANDS[verb]


def build(options: Namespace) -> int:
    """Make the image."""
    from lab import image, python_site

    Preflight().check(Plan.build(image.cache_directory()))
    progress = Progress()
    with interruptible():
        built = image.build(options.kernel, progress)
        python_site.build(progress)
    progress.say(f"kernel {built.version}, in {built.root.parent}")
    return 0


def up(options: Namespace) -> int:
    """Make a lab; when that fails or is interrupted, nothing is left of it."""
    from lab.cluster import Lab

    needs = Needs(options.storage, options.compute, ssds=options.ssds, ssd_gib=options.ssd_gib)
    Preflight().check(_plan(needs, options.kernel))
    with interruptible():
        Lab.up(
            options.name,
            storage=options.storage,
            compute=options.compute,
            progress=Progress(),
            kernel=options.kernel,
            **needs.disks(),
        )
    return status(options)


def status(options: Namespace) -> int:
    """Show machines and services."""
    lab = _load(options)
    progress = Progress()
    table = Table("machine", "role", "address", "state")
    for machine in lab.machines.values():
        table.add_row(machine.name, machine.role, machine.address, machine.state())
    progress.show(table)
    services = Table("process", "pid", "state")
    for name in lab.processes.names():
        pid = lab.processes.pid(name)
        services.add_row(name, str(pid or ""), "running" if pid else "ended")
    progress.show(services)
    progress.show(f"namespace {lab.netns}, files in {lab.state_dir}")
    return 0


def down(options: Namespace) -> int:
    """Remove the lab; one that is not there is down already."""
    from lab.cluster import Lab

    Preflight().root_only()
    progress = Progress()
    lab = Lab.find(options.name)
    if lab is None:
        progress.say(f"there is no lab {options.name!r}")
        return 0
    with progress.task("taking the lab down"):
        lab.down()
    return 0


def execute(options: Namespace) -> int:
    """Run a command in a machine; its code is ours."""
    words = options.command
    command = words[0] if len(words) == 1 else words
    machine = _machine(_load(options), options.machine)
    done = machine.run(command, check=False, timeout=options.timeout)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return int(done.returncode)


def logs(options: Namespace) -> int:
    """Show one log, or the names of all."""
    lab = _load(options)
    paths = {m.name: m.console_path for m in lab.machines.values()}
    paths |= {path.stem: path for path in sorted((lab.state_dir / "logs").glob("*.log"))}
    if options.log is None:
        print("\n".join(paths))
        return 0
    if options.log not in paths:
        raise UsageError(f"there is no log {options.log!r}", f"Logs: {', '.join(paths)}.")
    path = paths[options.log]
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    first = 0 if options.lines is None else max(0, len(lines) - options.lines)
    sys.stdout.writelines(f"{line}\n" for line in lines[first:])
    return 0


def act(options: Namespace) -> int:
    """Do to machines what the verb says."""
    lab = _load(options)
    machines = [_machine(lab, name) for name in options.machines]
    progress = Progress()
    for machine in machines:
        with progress.task(f"{options.verb} {machine.name}"):
            getattr(machine, options.verb)()
            if options.verb == "start":
                machine.wait_ready()
    return 0


def scenarios(_options: Namespace) -> int:
    """List the scenarios."""
    table = Table("scenario", "--all", "needs", "what it shows")
    registry = Registry()
    for name in registry.names():
        scenario = registry.get(name)
        in_all = "yes" if scenario.in_all else "by name"
        table.add_row(name, in_all, str(scenario.needs), scenario.summary)
    Progress().show(table)
    return 0


def run(options: Namespace) -> int:
    """Run scenarios."""
    registry = Registry()
    chosen = registry.all() if options.all else [registry.get(n) for n in options.scenario]
    return _run(options, chosen)


def tour(options: Namespace) -> int:
    """Run the scenario "tour"; with --keep, say how to go on by hand."""
    from lab.cluster import Lab

    scenario = Registry().get(TOUR)
    code = _run(options, [scenario])
    if options.keep and Lab.exists(options.name):
        lab = Lab.load(options.name)
        print(f"\nThe lab is running; kumo-lab down --name {lab.name} removes it.")
        if code == 0:
            print(f"To use it:\n\n{_shell(scenario.module.exports(lab))}")
    return code


def _run(options: Namespace, chosen: list[Scenario]) -> int:
    from lab.cluster import Lab
    from lab.runner import Runner, summary

    needs = chosen[0].needs
    for scenario in chosen[1:]:
        needs = needs.union(scenario.needs)
    # A lab that is there has its memory already.
    exists = Lab.exists(options.name)
    wanted = Needs(0, 0, needs.openstack) if exists else needs
    Preflight().check(_plan(wanted, options.kernel))
    progress = Progress()
    runner = Runner(Lab, options.name, progress, kernel=options.kernel, keep=options.keep)
    with interruptible():
        try:
            passed = runner.run(chosen)
        finally:
            progress.show(summary(runner.outcomes))
    return 0 if passed else 1


def _plan(needs: Needs, kernel: str) -> Plan:
    from lab import cluster, image, machine

    memory = machine.MEMORY_MIB
    mib = needs.storage * memory["storage"] + needs.compute * memory["compute"]
    built = image.cache_directory() / f"image-{kernel}-{image.key(kernel)}"
    return Plan.lab(
        mib,
        needs.openstack,
        cluster.base_directory(),
        None if built.exists() else image.cache_directory(),
    )


def _load(options: Namespace) -> Lab:
    from lab.cluster import Lab

    Preflight().root_only()
    return Lab.load(options.name)


def _machine(lab: Lab, name: str) -> Machine:
    if name not in lab.machines:
        raise UsageError(
            f"there is no machine {name!r} in lab {lab.name}",
            f"Machines: {', '.join(lab.machines)}.",
        )
    return lab.machines[name]


def _shell(exports: Mapping[str, Any] | str) -> str:
    """Exports as text for a shell; a text is taken as it is."""
    if isinstance(exports, str):
        return exports
    return "\n".join(f"export {name}={shlex.quote(str(v))}" for name, v in exports.items())


_COMMANDS: dict[str, Command] = {
    "build": build,
    "up": up,
    "status": status,
    "down": down,
    "exec": execute,
    "logs": logs,
    "scenarios": scenarios,
    "run": run,
    "tour": tour,
    **dict.fromkeys(("kill", "start", "reboot", "cut", "heal", "pause", "resume"), act),
}
