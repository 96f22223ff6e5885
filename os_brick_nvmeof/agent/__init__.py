# SPDX-License-Identifier: Apache-2.0
"""The agent of a host: keeps the paths of its volumes alive and replicated volumes redundant.

Observe (:mod:`.model`), plan (:mod:`.plan`, pure), act. Every round begins anew from what is seen;
events only say when to look again.
"""
