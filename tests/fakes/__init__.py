# SPDX-License-Identifier: Apache-2.0
"""Stateful fakes of the outside world."""
