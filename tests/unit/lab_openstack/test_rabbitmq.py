# SPDX-License-Identifier: Apache-2.0
import pytest

from lab.openstack import rabbitmq

LIBRARIES = ("rabbit-3.10.8", "rabbitmq_prelaunch-3.10.8", "rabbitmq_management-3.10.8", "ra-2.2.0")


@pytest.fixture
def server(tmp_path):
    """The tree of Debian's package: the script is reached through a link."""
    root = tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8"
    for name in ("sbin", "escript", *(f"plugins/{library}" for library in LIBRARIES)):
        (root / name).mkdir(parents=True)
    (root / "sbin/rabbitmq-server").touch()
    link = tmp_path / "usr/lib/rabbitmq/bin/rabbitmq-server"
    link.parent.mkdir()
    link.symlink_to(root / "sbin/rabbitmq-server")
    return link


def test_optional_plugins_are_left_out(settings, server):
    scripts = rabbitmq.library_tree(settings, server)
    assert (scripts / "rabbitmq-server").exists()
    assert {path.name for path in (scripts.parent / "plugins").iterdir()} == {
        "rabbit-3.10.8",
        "rabbitmq_prelaunch-3.10.8",
        "ra-2.2.0",
    }


def test_tree_can_be_made_again(settings, server):
    assert rabbitmq.library_tree(settings, server) == rabbitmq.library_tree(settings, server)


def test_missing_server_says_what_to_install(settings, tmp_path):
    with pytest.raises(rabbitmq.BrokerMissingError, match="Install the package rabbitmq-server"):
        rabbitmq.library_tree(settings, tmp_path / "none")


def test_every_path_is_below_the_stack_and_no_daemon_is_started(settings, monkeypatch):
    monkeypatch.setenv("RABBITMQ_LOG_BASE", "/var/log/rabbitmq")
    monkeypatch.setenv("ERL_AFLAGS", "-start_epmd true")
    env = rabbitmq.environment(settings)
    paths = {k: v for k, v in env.items() if k.startswith("RABBITMQ_") and v.startswith("/")}
    assert paths.pop("RABBITMQ_CONF_ENV_FILE") == "/dev/null"
    assert len(paths) >= 8
    assert all(path.startswith(str(settings.state_dir)) for path in paths.values())
    assert env["ERL_AFLAGS"] == "-start_epmd false"
    assert env["RABBITMQ_USE_LONGNAME"] == "true"


def test_broker_listens_on_the_stack_address_only(settings):
    text = rabbitmq.render_conf(settings)
    assert "listeners.tcp.lab = 192.0.2.7:5672\n" in text
    assert f"default_pass = {settings.passwords['rabbit']}\n" in text
