# SPDX-License-Identifier: Apache-2.0
"""Scenarios, one file each: SUMMARY, NEEDS and ``run(ctx)``; see :mod:`lab.scenario`.

The name of a scenario is that of its file with dashes. A file whose name starts with an underscore
is a helper, not a scenario.
"""
