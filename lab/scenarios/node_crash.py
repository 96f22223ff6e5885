# SPDX-License-Identifier: Apache-2.0
"""A storage node loses power in the middle of its work, and returns."""

from __future__ import annotations

import time

from kumo_client import errors
from lab import churn
from lab.controlplane import ControlPlane
from lab.machine import Machine
from lab.scenario import Context, Needs

SUMMARY = "power loss of a node during create, snapshot and delete leaves no orphan"
NEEDS = Needs(storage=2, compute=0)
# Seconds after the start of a round at which the node dies, and for which callers go on then.
MOMENTS = (4.2,)
AFTERWARDS = 3.0
_BACK_SECONDS = 180.0


def run(ctx: Context) -> None:
    """Let callers create, snapshot and delete; kill a node; start it; compare."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    for number, moment in enumerate(MOMENTS):
        node = ctx.lab.storage[number % len(ctx.lab.storage)]
        with ctx.step(f"{node.name} loses power {moment:.1f} s into creates and deletes"):
            callers = churn.Churn(plane, patient=True)
            time.sleep(moment)
            node.kill()
            time.sleep(AFTERWARDS)
            told = callers.stop()
            _check_refusals(ctx, told)
        with ctx.step(f"{node.name} returns; record and nodes are compared"):
            _start(ctx, plane, node)
            churn.check(ctx, plane, told, node.address)
        with ctx.step("everything is deleted"):
            churn.clear(ctx, plane)


def _check_refusals(ctx: Context, told: churn.Told) -> None:
    """While a node is away callers hear that, or that there is no room without it."""
    allowed = (errors.BackendUnavailableError, errors.NoSpaceError, errors.BusyError)
    strange = [str(one) for one in told.refused if not isinstance(one, allowed)]
    ctx.check(not strange, f"errors that say nothing of the dead node: {strange}")
    ctx.note(f"{len(told.volumes)} volumes made, {len(told.refused)} calls refused")


def _start(ctx: Context, plane: ControlPlane, node: Machine) -> None:
    node.start()
    node.wait_ready()
    begin = time.monotonic()
    while True:
        shown = plane.kumo_json("backend", "list")
        state = next(one["state"] for one in shown if node.address in one["mgmtIPs"])
        inventory = node.run("systemctl is-active -q kumo-node", check=False)
        if state == "Available" and inventory.returncode == 0:
            return
        waited = time.monotonic() - begin
        ctx.check(waited < _BACK_SECONDS, f"{node.name} is {state} {waited:.0f} s after its boot")
        time.sleep(1)
