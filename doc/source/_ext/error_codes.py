# SPDX-License-Identifier: Apache-2.0
"""``.. error-codes::``: the table of stable error codes out of kumo_client.errors."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from kumo_client import errors

# Made by a client or a starting program; no server answers them.
LOCAL = ("CommunicationError", "ProtocolError", "ConfigError")


def table() -> list[str]:
    """The lines of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 24 8 12 56", ""]
    lines += ["   * - ``status``", "     - HTTP", "     - transient", "     - meaning"]
    for code, cls in sorted(errors.known_codes().items()):
        if code in LOCAL:
            continue
        lines += [
            f"   * - ``{code}``",
            f"     - {cls.http_status}",
            f"     - {'yes' if cls.transient else 'no'}",
            f"     - {_meaning(cls)}".rstrip(),
        ]
    return [*lines, ""]


def _meaning(cls: type[errors.KumoError]) -> str:
    # Only its own words: a class without them is named well enough by its code.
    return " ".join((cls.__dict__.get("__doc__") or "").split())


class ErrorCodes(SphinxDirective):
    """Insert the table."""

    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        self.state.nested_parse(StringList(table(), source="<kumo_client.errors>"), 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("error-codes", ErrorCodes)
    return {"version": "1", "parallel_read_safe": True}
