# SPDX-License-Identifier: Apache-2.0
"""Who finishes what is unsettled on a volume, by kind; see :mod:`kumo_provisioner.settling`."""

from __future__ import annotations

from kumo_provisioner import settling
from kumo_provisioner.services import adoption, caps, extending, replicas, revert

SETTLERS: dict[str, settling.Settler] = {
    settling.EXTEND: extending.settle,
    settling.LIMITS: caps.apply,
    settling.REVERT: revert.finish,
    settling.REPLICAS: replicas.finish,
    settling.ADOPT: adoption.finish_adoption,
    settling.RELEASE: adoption.finish_release,
}
