# SPDX-License-Identifier: Apache-2.0
"""The provisioner dies in the middle of its work, on real nodes."""

from __future__ import annotations

import time

from lab import churn
from lab.controlplane import ControlPlane
from lab.scenario import Context, Needs

SUMMARY = "SIGKILL of the provisioner during create, snapshot and delete leaves no orphan"
NEEDS = Needs(storage=2, compute=0)
# Seconds after the start of a round at which the process dies; a round takes longer than that.
MOMENTS = (0.2, 0.5, 0.9, 1.4, 2.0)


def run(ctx: Context) -> None:
    """Let callers create, snapshot and delete; kill; reconcile; compare with the nodes."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    for moment in MOMENTS:
        with ctx.step(f"killed {moment:.1f} s into creates, snapshots and deletes"):
            callers = churn.Churn(plane)
            time.sleep(moment)
            plane.kill()
            told = callers.stop()
            ctx.check(not told.refused, f"refused before the kill: {told.refused}")
            plane.start_provisioner(ctx.progress)
            churn.check(ctx, plane, told)
            churn.clear(ctx, plane)
