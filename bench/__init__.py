# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each is a module for ``python -m`` and has its page in the documentation."""
