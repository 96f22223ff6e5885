# SPDX-License-Identifier: Apache-2.0
import pytest

from lab.openstack import config, pristine, stack
from lab.openstack.service import Service


class FakeProcesses:
    """Keeps what runs; the record outlives the Stack object."""

    netns = None

    def __init__(self, directory):
        self.directory, self.running, self.history = directory, {}, []

    def start(self, name, argv, env=None, cwd=None):
        assert name not in self.running
        self.running[name] = (argv, env)
        self.history.append(f"+{name}")
        return len(self.history)

    def alive(self, name):
        return name in self.running

    def pid(self, name):
        return 4000 if name in self.running else None

    def stop(self, name):
        if self.running.pop(name, None):
            self.history.append(f"-{name}")

    def log_path(self, name):
        return self.directory / f"{name}.log"


@pytest.fixture
def processes(tmp_path):
    return FakeProcesses(tmp_path)


@pytest.fixture
def make(processes, tmp_path, monkeypatch):
    """A factory of Stacks whose services answer at once."""

    def ready_service(name):
        return lambda settings, *_: Service(name, [name], lambda: True, {"HOME": "x"})

    monkeypatch.setattr(pristine, "provide", lambda report: tmp_path)
    monkeypatch.setattr(pristine, "copy", lambda source, settings: None)
    for module, function, name in (
        (stack.rabbitmq, "epmd", "epmd"),
        (stack.rabbitmq, "service", "rabbitmq"),
        (stack.keystone, "service", "keystone"),
        (stack.glance, "service", "glance-api"),
        (stack.cinder, "api", "cinder-api"),
        (stack.cinder, "scheduler", "cinder-scheduler"),
        (stack.cinder, "volume", "cinder-volume"),
        (stack.mariadb, "service", "mariadb"),
    ):
        monkeypatch.setattr(module, function, ready_service(name))
    monkeypatch.setattr(
        stack.mariadb, "migrate", lambda settings: processes.history.append("migrate")
    )

    def make(**words):
        return stack.Stack(processes, tmp_path / "openstack", "192.0.2.7", **words)

    return make


def test_start_and_stop_in_opposite_order(make, processes):
    lines = []
    one = make()
    one.start(lines.append)
    one.start_volume({"b": {}}, lines.append)
    names = [name for name in stack.NAMES if name != "mariadb"]
    assert [name.strip("+") for name in processes.history] == names
    assert len([line for line in lines if " ready after " in line]) == len(names)
    assert set(one.start_seconds) == set(names)

    processes.history.clear()
    one.stop()
    assert [name.strip("-") for name in processes.history] == list(reversed(names))
    one.stop()
    assert processes.running == {}


def test_another_object_finds_the_running_stack(make, processes):
    first = make()
    first.start(lambda line: None)
    second = make()
    assert second.exports() == first.exports()

    before = list(processes.history)
    second.start(lambda line: None)
    assert processes.history == before

    second.stop()
    assert processes.running == {}
    first.stop()


def test_start_again_starts_only_what_ended(make, processes):
    one = make()
    one.start(lambda line: None)
    del processes.running["glance-api"]
    processes.history.clear()
    one.start(lambda line: None)
    assert processes.history == ["+glance-api"]
    one.stop()


def test_volume_service_can_be_replaced_alone(make, processes):
    one = make()
    one.start_volume({"a": {}}, lambda line: None)
    one.stop_volume()
    one.start_volume({"b": {}}, lambda line: None)
    assert processes.history == ["+cinder-volume", "-cinder-volume", "+cinder-volume"]
    one.stop()


def test_shared_database_is_ready_before_any_service_that_uses_it(make, processes):
    one = make(shared_database=True)
    one.start(lambda line: None)
    assert processes.history[:2] == ["+mariadb", "migrate"]
    assert "+cinder-api" in processes.history
    one.stop()
    assert processes.history[-1] == "-mariadb"


def test_stack_keeps_the_database_it_was_made_with(make):
    make(shared_database=True).stop()
    assert make().settings.shared_database


def test_stack_with_a_local_database_cannot_become_shared(make):
    one = make()
    one.stop()
    with pytest.raises(ValueError, match="without a shared database"):
        make(shared_database=True)
    with pytest.raises(ValueError, match="a file that only this machine has"):
        one.volume_config({"b": {}})


def test_config_for_a_volume_service_elsewhere(make):
    one = make(shared_database=True)
    text = one.volume_config({"b": {}}, {"DEFAULT": {"host": "elsewhere"}})
    assert "host = elsewhere" in text
    one.stop()


def test_directory_of_another_address_is_refused(make, processes, tmp_path):
    make().stop()
    with pytest.raises(ValueError, match=r"192\.0\.2\.7, not 192\.0\.2\.8"):
        stack.Stack(processes, tmp_path / "openstack", "192.0.2.8")


def test_service_user_has_its_own_exports(make):
    one = make()
    exports = one.service_exports("nova")
    assert exports["OS_USERNAME"] == "nova"
    assert exports["OS_PROJECT_NAME"] == "service"
    assert exports["OS_PASSWORD"] != one.exports()["OS_PASSWORD"]
    one.stop()


def test_passwords_are_kept_private(make, tmp_path):
    make().stop()
    file = tmp_path / "openstack/stack.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert config.Settings.open("192.0.2.7", tmp_path / "openstack").passwords["admin"]
