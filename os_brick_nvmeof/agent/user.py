# SPDX-License-Identifier: Apache-2.0
"""The process becomes an ordinary user without capabilities, and leaves a daemon that is root.

In this order: no new privileges, which holds for the daemon's children, too; the daemon is forked,
as long as the process is root and has one thread; directories and files that an earlier agent made
as root are handed over; groups, group and user are set; every capability is given up, and what has
become of it is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Iterator

from oslo_config import cfg
from oslo_privsep import capabilities

from os_brick_nvmeof.agent import conf
from os_brick_nvmeof.locks import Locks

# Names of the connector's and the agent's files in the lock directory.
OURS = "os-brick-kumo-"
_ROOT = 0
# include/uapi/linux/prctl.h.
_PR_SET_NO_NEW_PRIVS = 38
# For setgroups, setgid and setuid.
NEEDED = (capabilities.CAP_SETUID, capabilities.CAP_SETGID)
_SECRETS = ("provisioner_token_file", "provisioner_ca_file", "provisioner_client_cert")


class UserError(Exception):
    """The process cannot become that user; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Account:
    """A user, with the group that the process gets, and the user's home directory."""

    name: str
    uid: int
    gid: int
    home: str


def account(options: cfg.ConfigOpts) -> Account | None:
    """Whom the options name; None when the agent is to be root.

    :raises UserError: there is no such user or group.
    """
    user, group = options.kumo_agent.user, options.kumo_agent.group
    if not user:
        if group:
            raise UserError("[kumo_agent] group is set without user: set user as well")
        return None
    try:
        found = pwd.getpwnam(user)
        gid = grp.getgrnam(group).gr_gid if group else found.pw_gid
    except KeyError as error:
        raise UserError(
            f"{error.args[0]}: set [kumo_agent] user and group to those that nova-compute runs as"
        ) from error
    return Account(user, found.pw_uid, gid, found.pw_dir) if found.pw_uid else None


class System:
    """Calls that cannot be taken back; tests hand in others."""

    def uid(self) -> int:
        return os.geteuid()

    def own(self, handle: int, uid: int, gid: int) -> None:
        os.fchown(handle, uid, gid)

    def become(self, chosen: Account) -> None:
        """Set groups, group and user for good."""
        os.initgroups(chosen.name, chosen.gid)
        os.setresgid(chosen.gid, chosen.gid, chosen.gid)
        os.setresuid(chosen.uid, chosen.uid, chosen.uid)
        capabilities.drop_all_caps_except([], [], [])

    def no_new_privileges(self) -> None:
        """prctl(2): no program that is run gives more than there is."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
            raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")

    def effective(self) -> set[int]:
        """Capabilities that can be used."""
        return set(capabilities.get_caps()[0])

    def left(self) -> str:
        """What is left of root; "" when it is nothing."""
        caps = sorted({one for each in capabilities.get_caps() for one in each})
        ids = os.getresuid()
        return f"user ids {ids}, capabilities {caps}" if caps or 0 in ids else ""


def become(
    options: cfg.ConfigOpts,
    chosen: Account,
    fork: Callable[[], None],
    needed: Iterable[int] = (),
    system: System | None = None,
) -> None:
    """Fork the daemon, and be that user from now on.

    :param fork: starts the daemon. :param needed: capabilities that it needs.
    :raises UserError: it cannot be done. :raises OSError: a directory cannot be handed over.
    """
    system = system or System()
    if system.uid():
        raise UserError(
            f"only root can become user {chosen.name}: start kumo-agent as root (in its unit"
            " without User=)"
        )
    missing = {*NEEDED, *needed} - system.effective()
    if missing:
        names = " ".join(sorted(capabilities.CAPS_BYVALUE[one] for one in missing))
        raise UserError(
            f"user {chosen.name} needs {names} at the start: add them to CapabilityBoundingSet, as"
            " the unit that comes with this version has them"
        )
    system.no_new_privileges()
    fork()
    hand_over(options, chosen, system)
    system.become(chosen)
    left = system.left()
    if left:
        raise UserError(f"the process did not give up what root has: {left}")
    os.environ.update(HOME=chosen.home, USER=chosen.name, LOGNAME=chosen.name)


# -- files ----------------------------------------------------------------------------------------


def hand_over(options: cfg.ConfigOpts, chosen: Account, system: System) -> None:
    """Give the user the agent's directories with their files, and ours of the lock directory."""
    group = options[conf.GROUP]
    for name, mode in (("state_dir", 0o700), ("run_dir", 0o755)):
        path = group[name]
        os.makedirs(path, mode, exist_ok=True)
        with _opened(path, os.O_DIRECTORY) as directory:
            found = os.listdir(directory)
            if any(stat.S_ISDIR(_mode(directory, entry)) for entry in found):
                raise UserError(
                    f"[kumo_agent] {name} {path} has directories in it, so it is not the agent's"
                    " alone and is not handed over: set it to a directory of its own"
                )
            _give(directory, chosen, system)
            for entry in found:
                _give_file(directory, entry, chosen, system)
    if not os.path.isdir(group.lock_path):
        os.makedirs(group.lock_path, 0o755, exist_ok=True)
        with _opened(group.lock_path, os.O_DIRECTORY) as directory:
            _give(directory, chosen, system)
    with _opened(group.lock_path, os.O_DIRECTORY) as directory:
        for entry in os.listdir(directory):
            if entry.startswith(OURS):
                _give_file(directory, entry, chosen, system, others=False)


@contextlib.contextmanager
def _opened(path: str, flags: int, directory: int | None = None) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        yield handle
    finally:
        os.close(handle)


def _mode(directory: int, name: str) -> int:
    """0 when it is gone: others work in these directories, too."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def _give_file(
    directory: int, name: str, chosen: Account, system: System, *, others: bool = True
) -> None:
    """A plain file that has no other name: the user can make links to files of others there.

    :param others: whatever its owner; otherwise one of root only.
    """
    if not stat.S_ISREG(_mode(directory, name)):
        return
    with (
        contextlib.suppress(FileNotFoundError),
        _opened(name, os.O_NOFOLLOW | os.O_NONBLOCK, directory) as handle,
    ):
        shown = os.fstat(handle)
        plain = stat.S_ISREG(shown.st_mode) and shown.st_nlink == 1
        if plain and (others or shown.st_uid == _ROOT):
            _give(handle, chosen, system)


def _give(handle: int, chosen: Account, system: System) -> None:
    shown = os.fstat(handle)
    if (shown.st_uid, shown.st_gid) != (chosen.uid, chosen.gid):
        system.own(handle, chosen.uid, chosen.gid)


def check(options: cfg.ConfigOpts, locks: Locks, name: str) -> None:
    """Whether the process can use what it needs, as the user that it is.

    :param name: of the user.
    :raises UserError: with the first that it cannot.
    """
    group = options[conf.GROUP]
    for option in _SECRETS:
        path = group[option]
        if path and os.path.exists(path) and not os.access(path, os.R_OK):
            raise UserError(
                f"user {name} cannot read {path} ([kumo_agent] {option}): give it to the user's"
                " group, and let the group read it (chgrp, chmod 0640)"
            )
    for option in ("state_dir", "run_dir", "lock_path"):
        _check_directory(option, group[option], name)
    try:
        locks.check()
    except OSError as error:
        raise UserError(
            f"user {name} cannot use the lock file: {error}; set [kumo_agent] user to the user"
            " that nova-compute runs as on this host"
        ) from error


def _check_directory(option: str, path: str, name: str) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"user {name} cannot write to {path} ([kumo_agent] {option}): "
            + (
                "set user to the one that nova-compute runs as, whose directory that is"
                if option == "lock_path"
                else "let the user pass the directories above it"
            )
        )
