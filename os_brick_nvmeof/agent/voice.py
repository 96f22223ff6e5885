# SPDX-License-Identifier: Apache-2.0
"""Actions that are said to the vendor, not done on this host."""

from __future__ import annotations

from os_brick_nvmeof.agent.actions import (
    Action,
    AskReplacement,
    ConfirmRemoval,
    Export,
    ReportArray,
    ReportLeg,
    ReportTask,
    RetireLeg,
)
from os_brick_nvmeof.agent.model import Volume
from os_brick_nvmeof.agent.vendor import Vendor

# All of them.
SAID = (
    AskReplacement,
    ReportLeg,
    ReportArray,
    Export,
    RetireLeg,
    ConfirmRemoval,
    ReportTask,
)


def say(vendor: Vendor, volume: Volume, action: Action) -> str | None:
    """Carry out an action with the vendor.

    :returns: uuid of the leg that came of it, "" where none does; None: it is no such action.
    :raises VendorError: it did not succeed.
    """
    match action:
        case AskReplacement():
            return vendor.request_replacement(volume, action.leg)
        case ReportLeg():
            vendor.report_leg(volume, action.leg, action.state)
        case ReportArray():
            vendor.report_array(volume, action.legs)
        case Export():
            vendor.export(volume)
        case RetireLeg():
            vendor.retire(volume, action.leg)
        case ConfirmRemoval():
            vendor.confirm(volume, action.gone)
        case ReportTask():
            vendor.report_task(
                action.task, state=action.state, status=action.status, progress=action.progress
            )
        case _:
            return None
    return ""
