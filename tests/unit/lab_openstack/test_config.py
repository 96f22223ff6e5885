# SPDX-License-Identifier: Apache-2.0
import configparser
import stat

import pytest

from lab.openstack import cinder, config, glance, keystone


def parsed(text):
    parser = configparser.RawConfigParser(default_section="none", strict=True)
    parser.optionxform = str
    parser.read_string(text)
    return parser


def test_render_ini_writes_each_kind_of_value():
    text = config.render_ini(
        {"DEFAULT": {"a": "x", "b": 3, "c": True, "d": False}, "s": {"e": ["p", "q"], "f": []}}
    )

    parser = parsed(text)
    assert dict(parser["DEFAULT"]) == {"a": "x", "b": "3", "c": "true", "d": "false"}
    assert dict(parser["s"]) == {"e": "p,q", "f": ""}


def test_render_ini_protects_dollars_from_substitution():
    assert "key = pa$$word" in config.render_ini({"DEFAULT": {"key": "pa$word"}})


@pytest.mark.parametrize("bad", [{"k": "a\nb = c"}, {"k\n[x]": "a"}, {"k": ["a", "b\r"]}])
def test_render_ini_refuses_line_breaks(bad):
    with pytest.raises(ValueError, match="line break"):
        config.render_ini({"DEFAULT": bad})


def test_merge_lets_the_later_part_win_and_changes_neither():
    first = {"a": {"x": 1, "y": 2}}
    assert config.merge(first, {"a": {"y": 3}, "b": {"z": 4}}) == {
        "a": {"x": 1, "y": 3},
        "b": {"z": 4},
    }
    assert first == {"a": {"x": 1, "y": 2}}


def test_private_file_is_readable_by_its_owner_only(tmp_path):
    path = config.write_private(tmp_path / "new/file", "secret")
    assert path.read_text() == "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_passwords_are_random_and_not_shown(settings, tmp_path):
    other = config.Settings.new("192.0.2.7", tmp_path)
    users = {"admin", "cinder", "glance", "nova", "rabbit", "database"}
    assert set(settings.passwords) == users
    everything = [*settings.passwords.values(), *other.passwords.values()]
    assert len(set(everything)) == 12
    assert not any(password in repr(settings) for password in everything)


def test_addresses_of_the_services(settings):
    assert settings.auth_url == "http://192.0.2.7:5000/v3"
    assert settings.volume_url == "http://192.0.2.7:8776/v3"
    assert settings.image_url == "http://192.0.2.7:9292"
    assert settings.transport_url.endswith("@192.0.2.7:5672/")


def test_catalogue_urls_get_the_address_on_the_ports_served():
    urls = {name: url for (name, _), url in keystone.ENDPOINTS.items()}
    assert urls["cinder"] == f"http://{keystone.PLACEHOLDER}:8776/v3/$(project_id)s"
    assert urls["glance"] == f"http://{keystone.PLACEHOLDER}:9292"


def test_exports_name_the_admin(settings):
    exports = settings.exports()
    assert exports["OS_AUTH_URL"] == settings.auth_url
    assert exports["OS_PASSWORD"] == settings.passwords["admin"]
    assert exports["OS_PROJECT_NAME"] == "admin"


def test_environment_of_a_service_has_nothing_of_the_callers_cloud(settings, monkeypatch):
    monkeypatch.setenv("OS_PASSWORD", "theirs")
    monkeypatch.setenv("RABBITMQ_NODENAME", "theirs")
    env = config.service_environment(settings)
    assert "theirs" not in env.values()
    assert env["PATH"].startswith(str(config.BIN))
    assert env["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("module", "name", "option"),
    [
        (keystone, "keystone", ("token", "provider", "fernet")),
        (glance, "glance", ("paste_deploy", "flavor", "keystone")),
        (cinder, "cinder", ("DEFAULT", "auth_strategy", "keystone")),
    ],
)
def test_each_service_has_its_own_database_and_never_debug(settings, module, name, option):
    parser = parsed(module.write_config(settings).read_text())
    section, key, value = option
    assert parser[section][key] == value
    assert parser["DEFAULT"]["debug"] == "false"
    assert f"/{name}.db?" in parser["database"]["connection"]


def test_token_keys_are_made_once(settings):
    keystone.write_config(settings)
    key = settings.state_dir / "keystone/fernet/1"
    before = key.read_text()
    keystone.write_config(settings)
    assert key.read_text() == before
    assert len(before) == 44


def test_volume_config_turns_the_backends_on(settings):
    backends = {"one": {"volume_driver": "a.B"}, "two": {"volume_backend_name": "shared"}}
    parser = parsed(
        cinder.volume_config(settings, backends, {"database": {"connection": "other://db"}})
    )
    assert parser["DEFAULT"]["enabled_backends"] == "one,two"
    assert dict(parser["one"]) == {"volume_backend_name": "one", "volume_driver": "a.B"}
    assert parser["two"]["volume_backend_name"] == "shared"
    assert parser["database"]["connection"] == "other://db"
    assert parser["DEFAULT"]["transport_url"] == settings.transport_url
