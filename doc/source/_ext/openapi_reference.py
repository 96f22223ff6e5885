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
# FastAPI announces its own answer to a wrong body; our edge answers 400 in its place.
NEVER_ANSWERED_OBJECTS = ("HTTPValidationError", "ValidationError")
TENANT = "/{tenantId}"


def _type_text(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[-1]}`_"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            # An optional field: null counts as absent.
            parts = [part for part in schema[key] if part.get("type") != "null"]
            return " or ".join(_type_text(part) for part in parts)
    if schema.get("type") == "array":
        return f"list of {_type_text(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _value(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        value = str(value).lower()
    return f"``{value}``" if value != "" else "empty"


def _limits(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "minLength": "length at least",
        "maxLength": "length at most",
        "minItems": "items at least",
        "maxItems": "items at most",
        "pattern": "matches",
        "default": "default",
    }
    found = [
        f"{word} {_value(schema[key])}"
        for key, word in words.items()
        if key in schema and not isinstance(schema[key], (dict, list))
    ]
    for part in schema.get("anyOf", []):
        found += [limit for limit in [_limits(part)] if limit]
    if schema.get("type") == "array" and (limit := _limits(schema.get("items", {}))):
        found.append(f"each: {limit}")
    return "; ".join(found)


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 26 22 10 42",
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
    return lines + _good_answer(operation)


def _good_answer(operation: dict[str, Any]) -> list[str]:
    answer = operation.get("responses", {}).get("200", {})
    schema = answer.get("content", {}).get("application/json", {}).get("schema")
    if not schema:
        # A route whose answer is a StatusAnswer and more, as its description says.
        return ["Answer: `StatusAnswer`_, with further fields", ""]
    return [f"Answer: {_type_text(schema)}", ""]


def reference(document: dict[str, Any]) -> list[str]:
    """The lines of reStructuredText that describe an OpenAPI 3.1 document."""
    paths = document["paths"]
    lines = ["Operations", "=" * 10, ""]
    for path, item in paths.items():
        if path.startswith(TENANT) and path.removeprefix(TENANT) in paths:
            continue
        if f"{TENANT}{path}" in paths:
            item = {method: _with_tenant(path, text) for method, text in item.items()}
        for method in METHODS:
            if method in item:
                lines += _operation(method, path, item[method])
    lines += ["Objects", "=" * 7, ""]
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        if name in NEVER_ANSWERED_OBJECTS:
            continue
        lines += [name, "-" * len(name), ""]
        lines += [*schema.get("description", "").splitlines(), ""]
        lines += _fields(schema)
    return lines


def _with_tenant(path: str, operation: dict[str, Any]) -> dict[str, Any]:
    text = operation.get("description", "")
    return operation | {"description": f"{text}\n\nAlso as ``{TENANT}{path}``."}


class OpenApiReference(SphinxDirective):
    """Insert the reference of the document named in ``openapi_documents``, as sections of a page.

    It stands before the first section that the page has itself, else docutils drops its sections.

    Its value is ``module:function``; the function gives a FastAPI application.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, function = self.config.openapi_documents[self.arguments[0]].partition(":")
        document = getattr(importlib.import_module(module), function)().openapi()
        content = StringList(reference(document), source=f"<{module}>")
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(content, 0, container, match_titles=True)
        if len(list(container.findall(nodes.section))) < len(document["paths"]):
            raise self.error("sections were dropped: put the directive before the page's own")
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("openapi_documents", {}, "env")
    app.add_directive("openapi-reference", OpenApiReference)
    return {"version": "2", "parallel_read_safe": True}
