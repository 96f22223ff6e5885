# SPDX-License-Identifier: Apache-2.0
"""Imports point one way. The table is that of the contributor's architecture page."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

OURS = {
    "bench",
    "cinder_kumo",
    "kumo_client",
    "kumo_node",
    "kumo_provisioner",
    "lab",
    "os_brick_nvmeof",
}
SERVER = {"fastapi", "starlette", "uvicorn", "pydantic", "anyio"}
ALLOWED = {
    "kumo_client": {"requests", "urllib3", "tenacity", "pydantic", "rich", "argcomplete"},
    "cinder_kumo": {"kumo_client", "cinder", "pydantic"},
    "kumo_provisioner": SERVER
    | {"kumo_client", "sqlalchemy", "alembic", "cryptography", "jwt", "prometheus_client"},
    "kumo_node": SERVER | {"kumo_client", "prometheus_client"},
    "os_brick_nvmeof": {"os_brick"},
}
AGENT = {"kumo_client", "prometheus_client", "pyudev", "rich"}
OSLO = {"cinder_kumo", "kumo_provisioner", "kumo_node", "os_brick_nvmeof"}
ANYTHING = {"bench", "lab"}


def imported(tree):
    """(line, dotted name) of every import in a module, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def allowed(package, path, name):
    top = name.split(".")[0]
    if top == package or top in sys.stdlib_module_names or top in ALLOWED[package]:
        return True
    if package == "os_brick_nvmeof" and top in AGENT:
        return "agent" in path.relative_to(ROOT).parts
    return package in OSLO and top.startswith("oslo_")


def wrong_arrows(package, path, text):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(ast.parse(text))
        if not allowed(package, path, name)
    ]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_every_import_is_in_the_table(package):
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        found += wrong_arrows(package, path, path.read_text())
    assert found == []


def test_every_package_is_in_the_table():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(ALLOWED) | ANYTHING
    assert packages <= OURS


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("kumo_client", "import oslo_config"),
        ("kumo_client", "from kumo_node import app"),
        ("kumo_node", "from kumo_provisioner.app import make"),
        ("cinder_kumo", "def f():\n    import kumo_node.lvm"),
        ("kumo_provisioner", "from os_brick.initiator import connector"),
        ("os_brick_nvmeof", "import kumo_client"),
    ],
)
def test_a_wrong_arrow_is_found(package, line):
    assert wrong_arrows(package, ROOT / package / "example.py", line) != []


def test_the_agent_may_speak_the_wire():
    path = ROOT / "os_brick_nvmeof" / "agent" / "example.py"
    assert wrong_arrows("os_brick_nvmeof", path, "import kumo_client") == []
