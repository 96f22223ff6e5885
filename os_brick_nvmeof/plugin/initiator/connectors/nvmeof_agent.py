# SPDX-License-Identifier: Apache-2.0
"""Where os-brick finds Kumo: its connector for NVMe-oF imports this module if it exists.

Installed as ``os_brick.initiator.connectors.nvmeof_agent``. Everything else is in
:mod:`os_brick_nvmeof.seam`; without that package this import fails, and os-brick goes on as if
this module did not exist (os_brick/initiator/connectors/nvmeof.py).
"""

from os_brick_nvmeof import seam

NVMeOFAgent = seam.NVMeOFAgent

seam.install()
