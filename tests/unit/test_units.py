# SPDX-License-Identifier: Apache-2.0
"""The systemd units start what setup.cfg installs, and the reference files match the options."""

import configparser
import pathlib
import shlex

import pytest
from oslo_config import generator

# Cinder asks for this machine's address when it is imported, which a test may not do.
from cinder_kumo import conf as driver_conf
from kumo_node import conf as node_conf
from kumo_provisioner import conf as provisioner_conf
from os_brick_nvmeof import conf as connector_conf
from os_brick_nvmeof.agent import conf as agent_conf

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "etc/systemd").glob("*.service"))
# Reference file in etc/kumo -> namespace of its options, and where they are.
REFERENCES = {
    "provisioner.conf.full": ("kumo_provisioner", provisioner_conf),
    "node.conf.full": ("kumo_node", node_conf),
    "cinder-backend.conf.full": ("cinder_kumo", driver_conf),
    "os-brick.conf.full": ("os_brick_nvmeof", connector_conf),
    "agent.conf.full": ("os_brick_nvmeof.agent", agent_conf),
}


def read(path, **options):
    parser = configparser.ConfigParser(interpolation=None, strict=True, **options)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def console_scripts():
    lines = read(ROOT / "setup.cfg")["entry_points"]["console_scripts"].split("\n")
    return {line.split("=")[0].strip() for line in lines if line.strip()}


def test_the_daemons_have_units():
    names = [path.stem for path in UNITS]
    assert names == ["kumo-agent", "kumo-node", "kumo-provisioner"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_an_installed_script_with_its_configuration(path):
    unit = read(path)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    command = pathlib.PurePosixPath(shlex.split(unit["Service"]["ExecStart"])[0])
    assert command.is_absolute()
    assert command.name == path.stem
    assert command.name in console_scripts()
    name = path.stem.removeprefix("kumo-")
    assert f"--config-file /etc/kumo/{name}.conf" in unit["Service"]["ExecStart"]


def test_the_provisioner_keeps_little_of_the_memory_it_has_freed():
    service = read(ROOT / "etc/systemd/kumo-provisioner.service")["Service"]
    assert service["Environment"] == "MALLOC_ARENA_MAX=2"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_again_and_keeps_its_files_to_itself(path):
    service = read(path)["Service"]
    assert service["Restart"] == "always"
    assert service["UMask"] == "0077"
    assert service["StateDirectoryMode"] == "0700"
    assert service["NoNewPrivileges"] == "yes"


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_reference_file_is_what_the_options_generate(name, tmp_path):
    namespace, conf = REFERENCES[name]
    made = tmp_path / name
    generator.main(["--namespace", namespace, "--output-file", str(made)])
    committed = (ROOT / "etc/kumo" / name).read_text()
    assert made.read_text() == committed, "run tools/check genconfig and commit its result"
    for _group, options in conf.list_opts():
        assert all(f"\n#{option.dest} =" in committed for option in options)


def test_the_provisioner_sample_can_be_read():
    options = provisioner_conf.load([str(ROOT / "etc/kumo/provisioner.conf.sample")])
    assert options.database.connection == "sqlite:////var/lib/kumo/provisioner.db"
    assert options.nodes.ca_file == "/etc/kumo/ca.pem"
