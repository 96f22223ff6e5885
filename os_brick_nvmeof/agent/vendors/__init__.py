# SPDX-License-Identifier: Apache-2.0
"""Makers of storage that the agent can speak to."""
