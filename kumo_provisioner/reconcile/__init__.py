# SPDX-License-Identifier: Apache-2.0
"""Bring the nodes to what the record says: observe, plan, act, node by node.

What an operation left behind when its process died is taken back in the record, or finished (an
operation at work holds the lock of its volume and is left alone). A node is asked what it holds,
:func:`~kumo_provisioner.reconcile.plan.plan` compares that with the rows of this node, and each
difference is settled under the lock of its volume after a second look at the record. Nothing is
concluded from a node that did not answer.

An object that no row knows is removed at once only when the record of removals shows that it was
ours; any other is garbage (:mod:`kumo_provisioner.services.garbage`).
"""

from kumo_provisioner.reconcile.counts import Counts
from kumo_provisioner.reconcile.rounds import run, tick

__all__ = ["Counts", "run", "tick"]
