# SPDX-License-Identifier: Apache-2.0
"""An NVMe-oF connector for os-brick: fast, parallel, never stale."""
