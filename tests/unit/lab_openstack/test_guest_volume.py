# SPDX-License-Identifier: Apache-2.0
import configparser
from types import SimpleNamespace

import pytest

from lab.errors import LabError
from lab.openstack import cinder, guest_volume

BACKENDS = {"kumo": {"volume_driver": "some.Driver", "kumo_token_file": "/etc/cinder/kumo/token"}}
FILES = {"/etc/cinder/kumo/token": b"secret"}


class Guest:
    """A machine with systemd. ``starting``: how often the service is asked for before it is up."""

    name, address = "compute1", "192.0.2.9"

    def __init__(self):
        self.files, self.modes, self.folders = {}, {}, set()
        self.active, self.log, self.starts = False, "", []
        self.on_start = lambda: None

    def put(self, path, data, mode=0o644):
        assert path.rpartition("/")[0] in self.folders or path.startswith("/usr/local/bin/")
        self.files[path], self.modes[path] = data, mode

    def run(self, command, *, check=True):
        words = command.split() if isinstance(command, str) else command
        code, text = 0, ""
        match words[:2]:
            case ["mkdir", _]:
                self.folders.update(words[4:])
            case ["systemd-run", _]:
                self.active = True
                self.starts.append(words)
                self.on_start()
            case ["systemctl", "is-active"]:
                code = 0 if self.active else 3
            case ["systemctl", "stop"]:
                code = 0 if self.active else 5
                self.active = False
            case ["journalctl", _]:
                text = self.log
        assert code == 0 or not check
        return SimpleNamespace(stdout=text, returncode=code)


class FakeStack:
    """Tells what the scheduler knows, one answer after the other."""

    def __init__(self, settings):
        self.settings, self.answers = settings, [set(), {"compute1@kumo"}]

    def reporting_backends(self):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def volume_config(self, backends, overrides):
        return cinder.volume_config(self.settings, backends, overrides)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def stack(settings):
    return FakeStack(settings)


@pytest.fixture
def service(stack, guest):
    clock = Clock()
    return guest_volume.GuestVolume(stack, guest, clock, clock.sleep)


def test_runs_with_a_config_of_its_own_machine(service, guest, settings):
    service.start(BACKENDS, FILES)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(guest.files[guest_volume.CONFIG].decode())
    default = parser["DEFAULT"]
    assert (default["host"], default["my_ip"]) == ("compute1", "192.0.2.9")
    assert default["glance_api_servers"] == settings.image_url
    assert parser["kumo"]["volume_driver"] == "some.Driver"
    # Nothing that the service writes or runs is named by a path of the stack's machine.
    for section, option in (
        ("DEFAULT", "state_path"),
        ("DEFAULT", "image_conversion_dir"),
        ("coordination", "backend_url"),
        ("oslo_concurrency", "lock_path"),
        ("cinder_sys_admin", "helper_command"),
        ("privsep_osbrick", "helper_command"),
    ):
        assert str(settings.state_dir) not in parser[section][option]
    ((*_, conf, _, directory),) = guest.starts
    assert (conf, directory) == (guest_volume.CONFIG, "/etc/cinder/conf.d")
    assert directory in guest.folders


def test_secrets_are_for_root_only(service, guest):
    service.start(BACKENDS, FILES)
    for path in (guest_volume.CONFIG, *FILES):
        assert guest.modes[path] == 0o600
    assert guest.files["/etc/cinder/kumo/token"] == b"secret"


def test_one_that_runs_is_not_started_again(service, guest):
    service.start(BACKENDS, FILES)
    service.start(BACKENDS, FILES)
    assert len(guest.starts) == 1


def test_cloud_that_cannot_be_asked_yet_is_asked_again(service, stack, guest):
    stack.answers = [OSError("connection refused"), {"compute1@kumo"}]
    service.start(BACKENDS, FILES)
    assert guest.active


def test_backend_of_another_host_does_not_count(service, stack):
    stack.answers = [{"kumo@kumo", "compute1@other"}]
    with pytest.raises(LabError, match=r"no backend after 24. s"):
        service.start(BACKENDS, FILES)


def test_service_that_ends_is_reported_with_its_log(service, stack, guest):
    stack.answers = [set()]

    def end():
        guest.active, guest.log = False, "first\nImportError: no such module\n"

    guest.on_start = end
    with pytest.raises(LabError, match=r"compute1: ended(.|\n)*ImportError"):
        service.start(BACKENDS, FILES)


def test_driver_that_failed_is_reported_at_once(service, stack, guest):
    stack.answers = [set()]
    guest.log = "ERROR Failed to initialize driver.: token refused\n"
    with pytest.raises(LabError, match="token refused"):
        service.start(BACKENDS, FILES)


def test_stop_can_be_repeated(service, guest):
    service.start(BACKENDS, FILES)
    service.stop()
    service.stop()
    assert not guest.active
