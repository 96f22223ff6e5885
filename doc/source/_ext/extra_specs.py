# SPDX-License-Identifier: Apache-2.0
"""``.. extra-specs::``: the table of the volume type's extra specs out of cinder_kumo.specs."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def table() -> list[str]:
    """The lines of reStructuredText."""
    from cinder_kumo import conf, specs

    options = {option.name: option for option in conf.OPTS}
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 12 12 42", ""]
    lines += ["   * - extra spec", "     - type", "     - default", "     - meaning; its option"]
    for spec in specs.SPECS:
        default = options[spec.option].default
        lines += [
            f"   * - ``{specs.PREFIX}:{spec.key}``",
            f"     - {spec.kind}",
            f"     - ``{default}``",
            f"     - {spec.title}. Overrides ``{spec.option}``.",
        ]
    return [*lines, ""]


class ExtraSpecs(SphinxDirective):
    """Insert the table."""

    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        content = StringList(table(), source="<cinder_kumo.specs>")
        self.state.nested_parse(content, 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("extra-specs", ExtraSpecs)
    return {"version": "1", "parallel_read_safe": True}
