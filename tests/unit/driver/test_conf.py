# SPDX-License-Identifier: Apache-2.0
"""Options: those of the in-tree driver keep their names, types and defaults."""

import logging
import pathlib
import re

import pytest
from cinder.volume import configuration
from cinder.volume.drivers.kioxia import kumoscale as in_tree
from oslo_config import cfg

from cinder_kumo import conf
from kumo_client import errors
from tests.unit.driver.conftest import GROUP

SAMPLE = pathlib.Path(__file__).resolve().parents[3] / "etc/kumo/cinder-backend.conf.sample"
OURS = {opt.name: opt for opt in conf.KIOXIA_OPTS}


@pytest.fixture
def read(cinder_conf):
    def make(*lines):
        config = cinder_conf(*lines)
        conf.register(config)
        return config

    return make


def endpoint(config):
    return conf.endpoint(config, default_cafile="/nonexistent")


@pytest.mark.parametrize("theirs", in_tree.KUMOSCALE_OPTS, ids=lambda opt: opt.name)
def test_in_tree_option_keeps_name_type_and_default(theirs):
    ours = OURS[theirs.name]
    assert type(ours) is type(theirs)
    assert ours.default == theirs.default
    assert list(getattr(ours.type, "choices", None) or ()) == list(
        getattr(theirs.type, "choices", None) or ()
    )


def test_no_in_tree_option_is_left_out():
    assert set(OURS) == {opt.name for opt in in_tree.KUMOSCALE_OPTS}
    assert len(OURS) == 18


def test_token_is_secret_here_and_not_there():
    assert OURS["kioxia_token"].secret is True


def test_every_option_has_help():
    assert [opt.name for opt in conf.OPTS if not opt.help] == []


def test_list_opts_gives_the_backend_section():
    [(group, opts)] = conf.list_opts()
    assert group == "backend_defaults"
    assert {opt.name for opt in opts} >= {"kioxia_url", "kumo_urls", "kumo_token_file"}


@pytest.fixture
def clean_groups(monkeypatch):
    """No driver's options are registered yet, and the in-tree ones are as Cinder made them."""

    def forget():
        cfg.CONF.reset()
        for group in (GROUP, configuration.SHARED_CONF_GROUP):
            cfg.CONF.register_group(cfg.OptGroup(group))
            for opt in conf.OPTS:
                cfg.CONF.unregister_opt(opt, group)

    [token] = [opt for opt in in_tree.KUMOSCALE_OPTS if opt.name == "kioxia_token"]
    monkeypatch.setattr(token, "secret", False)
    forget()
    yield
    forget()


@pytest.mark.usefixtures("clean_groups")
@pytest.mark.parametrize("theirs_first", [True, False])
def test_both_drivers_register_in_one_process(cinder_conf, theirs_first):
    config = cinder_conf("kioxia_token = s3cret", "kioxia_block_size = 512")
    if theirs_first:
        config.append_config_values(in_tree.KUMOSCALE_OPTS)
        conf.register(config)
    else:
        conf.register(config)
        config.append_config_values(in_tree.KUMOSCALE_OPTS)
    assert config.kioxia_block_size == 512
    for group in (GROUP, configuration.SHARED_CONF_GROUP):
        assert cfg.CONF._get_opt_info("kioxia_token", group)["opt"].secret is True


@pytest.mark.usefixtures("clean_groups")
def test_token_is_not_logged_with_the_options(cinder_conf, caplog):
    config = cinder_conf("kioxia_token = s3cret")
    config.append_config_values(in_tree.KUMOSCALE_OPTS)
    conf.register(config)
    caplog.set_level(logging.DEBUG)
    cfg.CONF.log_opt_values(logging.getLogger("opts"), logging.DEBUG)
    assert f"{GROUP}.kioxia_token" in caplog.text
    assert "s3cret" not in caplog.text


def test_values_come_from_the_shared_section_too(cinder_conf, tmp_path):
    config = cinder_conf("[backend_defaults]", "kioxia_num_replicas = 2")
    conf.register(config)
    assert config.kioxia_num_replicas == 2


def test_one_url_of_an_existing_file(read):
    assert endpoint(read("kioxia_url = https://192.0.2.1:30100/")).urls == [
        "https://192.0.2.1:30100"
    ]


def test_in_tree_driver_ignores_the_scheme(read):
    assert endpoint(read("kioxia_url = http://192.0.2.1:8090")).urls == ["https://192.0.2.1:8090"]


def test_several_urls_ipv6_included(read):
    config = read("kumo_urls = https://a.example, https://[2001:db8::1]:9000", "kioxia_url = x")
    assert endpoint(config).urls == ["https://a.example:8090", "https://[2001:db8::1]:9000"]


@pytest.mark.parametrize(
    "line",
    [
        "kumo_urls = http://a.example:8090",
        "kumo_urls = a.example:8090",
        "kumo_urls = https://a.example:8090/api",
        "kumo_urls = https://a.example:port",
        "kumo_urls = https://2001:db8::1",
        "kumo_urls = https://user:word@a.example",
        "kioxia_url = ftp://a.example:8090",
    ],
)
def test_wrong_url_is_named(read, line):
    with pytest.raises(errors.ConfigError, match=line.split(" ", maxsplit=1)[0]):
        endpoint(read(line))


def test_no_url_says_what_to_set(read):
    with pytest.raises(errors.ConfigError, match="kumo_urls"):
        endpoint(read())


def test_token_of_the_file_is_read_at_every_call(read, tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    token = endpoint(
        read("kioxia_url = https://a:1", "kioxia_token = other", f"kumo_token_file = {path}")
    ).token
    assert token() == "first"
    path.write_text("second\n")
    assert token() == "second"


def test_token_of_the_option(read):
    assert endpoint(read("kioxia_url = https://a:1", "kioxia_token = s3cret")).token() == "s3cret"
    assert endpoint(read("kioxia_url = https://a:1")).token is None


@pytest.mark.parametrize("content", [None, " \n"])
def test_missing_or_empty_token_file_is_named(read, tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.ConfigError, match=f"kumo_token_file: {path}"):
        endpoint(read("kioxia_url = https://a:1", f"kumo_token_file = {path}"))


def test_cafile_with_a_key_is_the_client_certificate(read, tmp_path):
    path = tmp_path / "ssdtoolbox.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    found = endpoint(read("kioxia_url = https://a:1", f"kioxia_cafile = {path}"))
    assert (found.client_cert, found.ca_file) == (str(path), str(path))


def test_cafile_without_a_key_is_the_ca(read, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\n")
    found = endpoint(read("kioxia_url = https://a:1", f"kioxia_cafile = {path}"))
    assert (found.client_cert, found.ca_file) == (None, str(path))


def test_kumo_ca_file_verifies(read, tmp_path):
    client, ca = tmp_path / "client.pem", tmp_path / "ca.pem"
    client.write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    ca.write_text("")
    found = endpoint(
        read("kioxia_url = https://a:1", f"kioxia_cafile = {client}", f"kumo_ca_file = {ca}")
    )
    assert (found.client_cert, found.ca_file) == (str(client), str(ca))


def test_default_cafile_is_used_if_it_exists(read, tmp_path):
    path = tmp_path / "ssdtoolbox.pem"
    config = read("kioxia_url = https://a:1")
    assert conf.endpoint(config, default_cafile=str(path)).client_cert is None
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    assert conf.endpoint(config, default_cafile=str(path)).client_cert == str(path)


@pytest.mark.parametrize("option", ["kioxia_cafile", "kumo_ca_file"])
def test_unreadable_file_is_named(read, option):
    with pytest.raises(errors.ConfigError, match=f"{option}: /nonexistent/x.pem cannot be read"):
        endpoint(read("kioxia_url = https://a:1", f"{option} = /nonexistent/x.pem"))


def test_sample_names_real_options_with_their_defaults():
    text = SAMPLE.read_text()
    shown = dict(re.findall(r"^#?(k[a-z_]+) = (.*)$", text, re.MULTILINE))
    options = {opt.name: opt for opt in conf.OPTS}
    assert set(shown) <= set(options)
    assert {"kumo_urls", "kumo_ca_file", "kumo_token_file", "kioxia_num_replicas"} <= set(shown)
    for name, value in re.findall(r"^#(k[a-z_]+) = (.*)$", text, re.MULTILINE):
        assert options[name].type(value) == options[name].default, name
