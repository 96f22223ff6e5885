# SPDX-License-Identifier: Apache-2.0
"""``.. openapi-reference:: NAME``: an API reference out of an OpenAPI document made by the code."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

METHODS = ("get", "post", "put", "patch", "delete")


def _type_text(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[-1]}`_"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type_text(part) for part in schema[key])
    if schema.get("type") == "array":
        return f"list of {_type_text(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _limits(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "minLength": "length at least",
        "maxLength": "length at most",
        "pattern": "matches",
        "default": "default",
    }
    found = [
        f"{word} ``{schema[key]!r}``" if schema[key] != "" else f"{word} empty"
        for key, word in words.items()
        if key in schema and not isinstance(schema[key], (dict, list))
    ]
    return "; ".join(found)


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 22 22 12 44",
        "",
        "   * - name",
        "     - type",
        "     - needed",
        "     - limits",
    ]
    for row in rows:
        lines += [f"   * - {row[0]}", *(f"     - {cell}".rstrip() for cell in row[1:])]
    return [*lines, ""]


def _fields(schema: dict[str, Any]) -> list[str]:
    needed = set(schema.get("required", ()))
    rows = [
        (f"``{name}``", _type_text(field), "yes" if name in needed else "no", _limits(field))
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(rows) if rows else []


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    title = f"{method.upper()} {path}"
    lines = [title, "-" * len(title), ""]
    text = operation.get("description") or operation.get("summary") or ""
    lines += [*text.splitlines(), ""]
    parameters = [
        (
            f"``{item['name']}`` ({item['in']})",
            _type_text(item.get("schema", {})),
            "yes" if item.get("required") else "no",
            _limits(item.get("schema", {})),
        )
        for item in operation.get("parameters", [])
    ]
    if parameters:
        lines += _table(parameters)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if body.get("schema"):
        lines += [f"Body: {_type_text(body['schema'])}", ""]
    for status, answer in operation.get("responses", {}).items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        if schema:
            lines += [f"Answer {status}: {_type_text(schema)}", ""]
    return lines


def reference(document: dict[str, Any]) -> list[str]:
    """The lines of reStructuredText that describe an OpenAPI 3.1 document."""
    lines = ["Operations", "=" * 10, ""]
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                lines += _operation(method, path, item[method])
    lines += ["Objects", "=" * 7, ""]
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        lines += [name, "-" * len(name), ""]
        lines += [*schema.get("description", "").splitlines(), ""]
        lines += _fields(schema)
    return lines


class OpenApiReference(SphinxDirective):
    """Insert the reference of the document named in ``openapi_documents``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, function = self.config.openapi_documents[self.arguments[0]].partition(":")
        document = getattr(importlib.import_module(module), function)()
        content = StringList(reference(document), source=f"<{module}>")
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(content, 0, container, match_titles=True)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("openapi_documents", {}, "env")
    app.add_directive("openapi-reference", OpenApiReference)
    return {"version": "1", "parallel_read_safe": True}
