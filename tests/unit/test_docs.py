# SPDX-License-Identifier: Apache-2.0
"""The documentation names every command, exit code and option that there is."""

import argparse
import pathlib
import re
import shlex

import pytest

from kumo_client import config
from kumo_client.cli import main as kumo
from kumo_provisioner import main as provisioner
from lab import main as kumo_lab

DOC = pathlib.Path(__file__).resolve().parents[2] / "doc/source"


def text(name):
    return re.sub(r"\s+", " ", (DOC / name).read_text())


def choices(parser):
    """Sub-commands of a parser by name."""
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def commands(parser, *words):
    """Every command that can be typed."""
    below = choices(parser)
    if not below:
        return [" ".join(words)]
    return [line for name in below for line in commands(below[name], *words, name)]


@pytest.mark.parametrize("command", commands(kumo.build_parser(), "kumo"))
def test_every_kumo_command_is_on_its_page(command):
    assert f"``{command}" in text("user/commands.rst")


def test_no_kumo_command_is_on_the_page_that_is_not_there():
    known = commands(kumo.build_parser(), "kumo")
    shown = re.findall(
        r"^``(kumo [a-z]+(?: [a-z]+(?:-[a-z]+)*)?)", (DOC / "user/commands.rst").read_text(), re.M
    )
    assert sorted(shown) == sorted(known)


@pytest.mark.parametrize("key", config.KEYS)
def test_every_setting_is_on_its_page(key):
    page = text("user/commands.rst")
    assert f"``KUMO_{key.upper()}``" in page
    assert f"``{key}``" in page


@pytest.mark.parametrize("verb", choices(provisioner._parser()))
def test_every_provisioner_command_is_on_its_page(verb):
    assert re.search(rf"``kumo-provisioner \[?{verb}\b", text("user/commands.rst"))


@pytest.mark.parametrize("verb", choices(kumo_lab.build_parser()))
def test_every_lab_command_is_on_its_page(verb):
    page = text("contributor/lab.rst")
    assert f"``kumo-lab {verb}" in page or re.search(rf"``kumo-lab \w+``, ``{verb}\b", page)


def test_install_pages_name_only_options_that_exist():
    from kumo_node import conf as node

    page = text("install/storage.rst")
    named = set(re.findall(r"``([a-z]+(?:_[a-z]+)+)``", page)) | {"disks", "portals", "hostname"}
    assert named - {option.dest for option in node.OPTS} == set()


def shown_commands():
    """(page, command) of each ``kumo`` line of a block that shows what to type."""
    found = []
    for path in sorted(DOC.glob("operations/*.rst")):
        for line in re.findall(r"^ {4,}(kumo [a-z].*)$", path.read_text(), re.M):
            found.append((path.name, line.split("#")[0].strip()))
    return found


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_commands_of_the_operations_guide_can_be_typed(page, line):
    arguments = kumo.build_parser().parse_args(shlex.split(line)[1:])
    assert callable(arguments.run), f"{page}: {line}"
