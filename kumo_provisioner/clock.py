# SPDX-License-Identifier: Apache-2.0
"""The time of day."""

import time


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
