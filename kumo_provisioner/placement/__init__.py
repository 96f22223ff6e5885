# SPDX-License-Identifier: Apache-2.0
"""Where replicas go: filters, then weights, all of them pure.

Rules:

* Only pools in order of nodes that are Available, in no mode and not cordoned get new replicas, and
  a node at most one of a volume.
* A list of zones, racks or regions restricts the nodes that have a zone, rack or region set; a
  node without one takes part in every request. So a fleet without zones serves clients that always
  send one (Cinder sends the availability zone of the volume).
* Replicas go to different racks unless the request allows otherwise. A node without a rack counts
  as a rack of its own.
* The sum of the charges on a pool never exceeds it. A THICK replica is charged with its size, a
  THIN one with its size divided by the over-subscription ratio.
* Guarantees are never over-subscribed: what is guaranteed on a pool, and on a node, never exceeds
  what it was declared or measured to deliver. Where that is not known, nothing is guaranteed.
* A pool that is nearly full, and a pool or node that is very busy, gets nothing new.
* Of what remains the least used comes first.
"""

from kumo_provisioner.placement.choosing import place, verdicts
from kumo_provisioner.placement.facts import (
    Ask,
    Candidate,
    Rules,
    Verdict,
    charge,
)
from kumo_provisioner.placement.filters import FILTERS, Refusal, growing
from kumo_provisioner.placement.weights import weight

__all__ = [
    "FILTERS",
    "Ask",
    "Candidate",
    "Refusal",
    "Rules",
    "Verdict",
    "charge",
    "growing",
    "place",
    "verdicts",
    "weight",
]
