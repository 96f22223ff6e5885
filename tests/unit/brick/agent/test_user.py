# SPDX-License-Identifier: Apache-2.0
"""The process becomes an ordinary user: in which order, and what is said when it cannot."""

import os
import pathlib
import re
import types

import pytest
from oslo_privsep import capabilities

from os_brick_nvmeof.agent import conf, main, rooted, user
from os_brick_nvmeof.agent.means import Means
from os_brick_nvmeof.locks import FILE, Locks
from tests.fakes.agent_host import Host

NOVA = user.Account("nova", 12345, 23456, "/var/lib/nova")


class System(user.System):
    """Tells what was done, by names of files."""

    def __init__(self, path, uid=0, caps=tuple(range(40)), left=""):
        self.path, self._uid, self._caps, self._left = path, uid, caps, left
        self.done = []

    def uid(self):
        return self._uid

    def own(self, handle, uid, gid):
        assert (uid, gid) == (NOVA.uid, NOVA.gid)
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), self.path)
        self.done.append(f"own {name}")

    def become(self, chosen):
        self.done.append(f"become {chosen.name}")

    def no_new_privileges(self):
        self.done.append("no new privileges")

    def effective(self):
        return set(self._caps)

    def left(self):
        return self._left


@pytest.fixture
def options(tmp_path):
    made = conf.load([os.devnull])
    for name in ("state_dir", "run_dir", "lock_path"):
        made.set_override(name, str(tmp_path / name), group=conf.GROUP)
    return made


@pytest.fixture
def names(monkeypatch, options):
    """Users and groups of the host, and a way to name one."""
    users = {"nova": types.SimpleNamespace(pw_uid=12345, pw_gid=23456, pw_dir="/var/lib/nova")}
    users["root"] = types.SimpleNamespace(pw_uid=0, pw_gid=0, pw_dir="/root")

    def find(known):
        def get(name):
            if name not in known:
                raise KeyError(f"name not found: {name!r}")
            return known[name]

        return get

    groups = {"storage": types.SimpleNamespace(gr_gid=777)}
    fakes = types.SimpleNamespace(getpwnam=find(users), getgrnam=find(groups))
    monkeypatch.setattr(user, "pwd", fakes)
    monkeypatch.setattr(user, "grp", fakes)

    def name(chosen, group=None):
        options.set_override("user", chosen, group=conf.GROUP)
        options.set_override("group", group, group=conf.GROUP)
        return user.account(options)

    return name


def test_who_it_is_to_be(names):
    assert names("nova") == NOVA
    assert names("nova", "storage").gid == 777
    assert names(None) is None
    assert names("root") is None


@pytest.mark.parametrize("chosen", [("nowa", None), ("nova", "storaga"), (None, "storage")])
def test_a_user_or_group_that_is_none_is_said(names, chosen):
    with pytest.raises(user.UserError, match=r"storaga|nowa|without user"):
        names(*chosen)


def test_the_order(options, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": "/root"})
    (tmp_path / "state_dir").mkdir()
    (tmp_path / "state_dir/memory.json").touch()
    system = System(tmp_path)
    user.become(options, NOVA, lambda: system.done.append("fork"), [], system)
    assert system.done == [
        "no new privileges",
        "fork",
        "own state_dir",
        "own state_dir/memory.json",
        "own run_dir",
        "own lock_path",
        "become nova",
    ]
    assert os.environ == {"HOME": "/var/lib/nova", "USER": "nova", "LOGNAME": "nova"}


def test_nothing_is_begun_that_cannot_be_done(options, tmp_path):
    needed = [capabilities.CAP_NET_ADMIN]
    cases = [
        (System(tmp_path, uid=1000), "only root can become user nova"),
        (System(tmp_path, caps=[capabilities.CAP_SETGID]), "CAP_NET_ADMIN CAP_SETUID"),
    ]
    for system, text in cases:
        with pytest.raises(user.UserError, match=text):
            user.become(options, NOVA, lambda: None, needed, system)
        assert system.done == []


def test_what_is_left_of_root_is_an_error(options, tmp_path):
    system = System(tmp_path, left="capabilities [21]")
    with pytest.raises(user.UserError, match=r"did not give up .*21"):
        user.become(options, NOVA, lambda: None, [], system)


def test_what_is_given_to_the_user(options, tmp_path, monkeypatch):
    monkeypatch.setattr(user, "_ROOT", os.geteuid())
    for name in ("state_dir", "lock_path"):
        (tmp_path / name).mkdir()
    state, locks = tmp_path / "state_dir", tmp_path / "lock_path"
    other = tmp_path / "precious"
    for path in (other, state / "lock", locks / FILE, locks / "os-brick-kumo-subsystem-a"):
        path.touch()
    (locks / "other").touch()
    (state / "symbolic").symlink_to(other)
    (state / "hard").hardlink_to(other)
    os.mkfifo(state / "pipe")
    (locks / "os-brick-kumo-symbolic").symlink_to(other)
    system = System(tmp_path)
    # Others of the directory come and go.
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*listed(path), "os-brick-kumo-gone"])
    user.hand_over(options, NOVA, system)
    assert sorted(system.done) == [
        "own lock_path/os-brick-kumo-locks",
        "own lock_path/os-brick-kumo-subsystem-a",
        "own run_dir",
        "own state_dir",
        "own state_dir/lock",
    ]


def test_files_of_other_services_stay_theirs(options, tmp_path, monkeypatch):
    monkeypatch.setattr(user, "_ROOT", os.geteuid() + 1)
    (tmp_path / "lock_path").mkdir()
    (tmp_path / "lock_path" / FILE).touch()
    system = System(tmp_path)
    user.hand_over(options, NOVA, system)
    assert system.done == ["own state_dir", "own run_dir"]


def test_a_file_that_goes_meanwhile_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(user, "_mode", lambda _directory, _name: 0o100600)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        user._give_file(handle, "gone", NOVA, System(tmp_path))
    finally:
        os.close(handle)


def test_a_directory_of_others_is_not_given_away(options, tmp_path):
    (tmp_path / "state_dir/log").mkdir(parents=True)
    system = System(tmp_path)
    with pytest.raises(user.UserError, match=r"state_dir .* has directories in it"):
        user.hand_over(options, NOVA, system)
    assert system.done == []


def test_what_is_the_users_already_is_not_given_again(options, tmp_path):
    mine = user.Account("me", os.getuid(), os.getgid(), "/")
    system = System(tmp_path)
    user.hand_over(options, mine, system)
    assert system.done == []


def test_the_unit_begins_with_what_is_needed():
    root = pathlib.Path(user.__file__).parents[2]
    text = (root / "etc/systemd/kumo-agent.service").read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))
    assert "User" not in lines
    named = {capabilities.CAPS_BYNAME[name] for name in lines["CapabilityBoundingSet"].split()}
    assert named >= {*rooted.CAPABILITIES, *user.NEEDED}


# -- what the user can use ------------------------------------------------------------------------


@pytest.fixture
def denied(monkeypatch, options, tmp_path):
    """Paths that the user may not use; root could use all."""
    found = set()
    for name in ("state_dir", "run_dir", "lock_path"):
        (tmp_path / name).mkdir()
    options.set_override("provisioner_token_file", str(tmp_path / "token"), group=conf.GROUP)
    monkeypatch.setattr(os, "access", lambda path, _mode: pathlib.Path(path).name not in found)
    return found


def test_all_can_be_used(options, tmp_path, denied):
    # A token that is not there is said when it is read.
    user.check(options, Locks(str(tmp_path / "lock_path")), "nova")
    user.check(options, Locks(None), "nova")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("token", r"cannot read .*token .*chmod 0640"),
        ("state_dir", r"state_dir.*directories above it"),
        ("lock_path", r"lock_path.*nova-compute runs as"),
    ],
)
def test_what_cannot_be_used_is_said(options, tmp_path, denied, path, text):
    (tmp_path / "token").touch()
    denied.add(path)
    with pytest.raises(user.UserError, match=text):
        user.check(options, Locks(str(tmp_path / "lock_path")), "nova")


def test_a_lock_file_that_cannot_be_opened_is_said(options, tmp_path, denied):
    (tmp_path / "lock_path" / FILE).mkdir()
    with pytest.raises(user.UserError, match=r"cannot use the lock file: .*directory"):
        user.check(options, Locks(str(tmp_path / "lock_path")), "nova")


# -- the calls ------------------------------------------------------------------------------------


def test_what_the_kernel_is_told(monkeypatch):
    told = []
    for name in ("initgroups", "setresgid", "setresuid", "fchown"):
        monkeypatch.setattr(os, name, lambda *given, name=name: told.append((name, *given)))
    monkeypatch.setattr(
        capabilities, "drop_all_caps_except", lambda *given: told.append(("caps", *given))
    )
    system = user.System()
    system.become(NOVA)
    system.own(7, 1, 2)
    assert told == [
        ("initgroups", "nova", 23456),
        ("setresgid", 23456, 23456, 23456),
        ("setresuid", 12345, 12345, 12345),
        ("caps", [], [], []),
        ("fchown", 7, 1, 2),
    ]
    assert system.uid() == os.geteuid()


@pytest.mark.parametrize("answer", [0, -1])
def test_no_new_privileges(monkeypatch, answer):
    asked = []

    class Libc:
        def __init__(self, name, use_errno):
            assert (name, use_errno) == (None, True)

        def prctl(self, *given):
            asked.append([getattr(one, "value", one) for one in given])
            return answer

    monkeypatch.setattr(user.ctypes, "CDLL", Libc)
    if answer:
        with pytest.raises(OSError, match="NO_NEW_PRIVS"):
            user.System().no_new_privileges()
    else:
        user.System().no_new_privileges()
    assert asked == [[38, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("caps", "ids", "left"),
    [
        (([], [], []), (5, 5, 5), ""),
        (([], [21], [12]), (5, 5, 5), "user ids (5, 5, 5), capabilities [12, 21]"),
        (([], [], []), (5, 5, 0), "user ids (5, 5, 0), capabilities []"),
    ],
)
def test_what_is_left(monkeypatch, caps, ids, left):
    monkeypatch.setattr(capabilities, "get_caps", lambda: caps)
    monkeypatch.setattr(os, "getresuid", lambda: ids)
    assert user.System().left() == left
    assert user.System().effective() == set()


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def entered(tmp_path, monkeypatch, options):
    """The command with a user. :ivar done: what was done, in its order."""
    found = types.SimpleNamespace(done=[], host=Host(tmp_path))
    monkeypatch.setattr(main, "context", lambda _options: found.host.ctx)
    monkeypatch.setattr(main, "_root_uuid", lambda: found.done.append("uuid") or "of the root")
    monkeypatch.setattr(user, "account", lambda _options: NOVA)
    monkeypatch.setattr(
        user,
        "become",
        lambda _options, chosen, fork, needed: found.done.append((chosen, fork, needed)),
    )
    monkeypatch.setattr(
        user, "check", lambda _options, locks, name: found.done.append((locks, name))
    )
    return found


def test_it_is_entered_in_order(entered, options):
    ctx, means = main.enter(options)
    locks = entered.host.ctx.locks
    become = (NOVA, rooted.begin, rooted.CAPABILITIES)
    assert entered.done == ["uuid", become, (locks, "nova")]
    assert options.kumo_agent.host_id == "of the root"
    assert (ctx.locks, means.user) == (locks, "nova")
    assert ctx.host is not entered.host.ctx.host
    assert ctx.host._far is rooted
    entered.done.clear()
    main.enter(options)
    assert entered.done == [become, (locks, "nova")]


def test_why_it_cannot_be_entered_is_said(entered, options, monkeypatch):
    def no(_options):
        raise user.UserError("there is no such user")

    monkeypatch.setattr(user, "account", no)
    with pytest.raises(main.StartError, match="no such user"):
        main.enter(options)


@pytest.mark.parametrize(
    ("name", "chosen", "text"),
    [
        (None, "", "WARNING Runs as root"),
        ("root", "", ""),
        ("nova", "nova", "INFO Runs as user nova"),
    ],
)
def test_who_it_is_is_said(options, caplog, name, chosen, text):
    caplog.set_level("INFO")
    options.set_override("user", name, group=conf.GROUP)
    main._tell_user(options, Means(user=chosen))
    said = [f"{one.levelname} {one.getMessage()}" for one in caplog.records]
    assert [one[: len(text)] for one in said] == ([text] if text else [])


@pytest.mark.parametrize("whole", [True, False])
def test_it_ends_with_its_daemon(entered, options, monkeypatch, whole):
    entered.host.attach()
    left = []

    class Watch:
        def __init__(self, *_):
            pass

        def start(self):
            pass

        def stop(self):
            pass

    def leave(code):
        left.append(code)

    monkeypatch.setattr(main, "_vendor", lambda *_: entered.host.storage)
    monkeypatch.setattr(main.watch, "Watch", Watch)
    monkeypatch.setattr(main.watch, "udev_monitor", lambda: None)
    monkeypatch.setattr(main.Agent, "start", lambda _self: None)
    monkeypatch.setattr(main.Agent, "run", lambda self, alive: self.stopping.is_set() and whole)
    monkeypatch.setattr(main.os, "_exit", leave)
    monkeypatch.setattr(main.logging, "shutdown", lambda: None)
    means = Means(when_lost=lambda work: work())
    with pytest.raises(main.StartError, match="its privileged daemon has ended"):
        main.run(options, entered.host.ctx, means)
    assert left == ([] if whole else [1])
