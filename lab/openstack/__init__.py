# SPDX-License-Identifier: Apache-2.0
"""Real OpenStack services for the lab, run natively and kept small."""
