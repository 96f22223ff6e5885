# SPDX-License-Identifier: Apache-2.0
"""The configfs tree of the Linux NVMe target, behaving as drivers/nvme/target/configfs.c does.

A directory of files in which making a directory makes its attributes, links have effects, values
are checked, and what is in use cannot be removed.
"""

import errno
import functools
import os
import pathlib
import shutil
import threading
import uuid

from kumo_node.nvmet import Configfs

ZERO = str(uuid.UUID(int=0))
HOST = {"dhchap_key": "", "dhchap_ctrl_key": "", "dhchap_hash": "hmac(sha256)"}
SUBSYSTEM = {
    "attr_allow_any_host": "0",
    "attr_version": "2.1",
    "attr_serial": "3e2a1b0c9d8f7e6d5c4b",
    "attr_model": "Linux",
    "attr_cntlid_min": "1",
    "attr_cntlid_max": "65519",
    "attr_qid_max": "128",
}
NAMESPACE = {
    "device_path": "(null)",
    "device_uuid": ZERO,
    "device_nguid": ZERO,
    "ana_grpid": "1",
    "enable": "0",
    "buffered_io": "0",
    "revalidate_size": "",
}
PORT = {
    "addr_trtype": "",
    "addr_adrfam": "",
    "addr_traddr": "",
    "addr_trsvcid": "",
    "addr_treq": "not specified",
    "addr_tsas": "",
    "param_inline_data_size": "-1",
}


def _refuse(number, what):
    raise OSError(number, os.strerror(number), str(what))


def _atomic(operation):
    """One file operation; configfs shows a directory only with all its attributes."""

    @functools.wraps(operation)
    def whole(self, *arguments):
        with self.lock:
            return operation(self, *arguments)

    return whole


class FakeNvmet(Configfs):
    """The tree.

    :ivar down: (trtype, address) that cannot be listened on now.
    :ivar discovered: subsystems that a host has seen.
    :ivar sizes: (subsystem, nsid) -> bytes that hosts were told last.
    :ivar step: called before each change with a word for it; may raise.
    """

    def __init__(self, root):
        super().__init__(root)
        self.down = set()
        self.discovered = set()
        self.sizes = {}
        self.step = lambda what: None
        self.lock = threading.RLock()
        self.load()

    def load(self):
        """As after loading the module: three empty groups."""
        if self.root.exists():
            shutil.rmtree(self.root)
        for name in ("hosts", "subsystems", "ports"):
            (self.root / name).mkdir(parents=True)
        self.sizes.clear()
        self.discovered.clear()

    exists = _atomic(Configfs.exists)
    names = _atomic(Configfs.names)
    read = _atomic(Configfs.read)

    # Directories.

    def mkdir(self, *parts):
        self.step(f"mkdir {'/'.join(parts)}")
        self._mkdir(*parts)

    @_atomic
    def _mkdir(self, *parts):
        path = self.root.joinpath(*parts)
        if path.exists():
            return
        if not path.parent.is_dir():
            _refuse(errno.ENOENT, path)
        match parts:
            case ("hosts", _):
                self._make(path, HOST, [])
            case ("subsystems", _):
                self._make(path, SUBSYSTEM, ["namespaces", "allowed_hosts"])
            case ("subsystems", _, "namespaces", number):
                if not 0 < int(number) < 0xFFFFFFFF:
                    _refuse(errno.EINVAL, path)
                self._make(path, NAMESPACE, [])
            case ("ports", number):
                if not 0 <= int(number) < 65536:
                    _refuse(errno.EINVAL, path)
                self._make(path, PORT, ["subsystems", "referrals"])
            case _:
                _refuse(errno.EPERM, path)

    def _make(self, path, attributes, groups):
        path.mkdir()
        for name, value in attributes.items():
            (path / name).write_text(value + "\n")
        for name in groups:
            (path / name).mkdir()

    def rmdir(self, *parts):
        self.step(f"rmdir {'/'.join(parts)}")
        self._rmdir(*parts)

    @_atomic
    def _rmdir(self, *parts):
        path = self.root.joinpath(*parts)
        if not path.exists():
            return
        if self._links_to(path):
            _refuse(errno.EBUSY, path)
        for group in ("namespaces", "allowed_hosts", "subsystems"):
            if self.names(*parts, group):
                _refuse(errno.ENOTEMPTY, path)
        if parts[0] == "subsystems" and len(parts) == 4:
            self.sizes.pop((parts[1], int(parts[3])), None)
        self.discovered.discard(parts[-1])
        shutil.rmtree(path)

    def _links_to(self, path):
        found = [*self.root.glob("subsystems/*/allowed_hosts/*")]
        found += self.root.glob("ports/*/subsystems/*")
        return [link for link in found if pathlib.Path(os.readlink(link)) == path]

    # Links.

    def link(self, target, *parts):
        self.step(f"link {'/'.join(parts)}")
        self._link(target, *parts)

    @_atomic
    def _link(self, target, *parts):
        path = self.root.joinpath(*parts)
        where = self.root.joinpath(*target)
        if not where.is_dir():
            _refuse(errno.ENOENT, where)
        if os.path.lexists(path):
            _refuse(errno.EEXIST, path)
        match parts:
            case ("ports", port, "subsystems", _):
                if target[0] != "subsystems":
                    _refuse(errno.EINVAL, path)
                if not self.names("ports", port, "subsystems"):
                    self._listen(port)
            case ("subsystems", nqn, "allowed_hosts", _):
                if (
                    target[0] != "hosts"
                    or self.read("subsystems", nqn, "attr_allow_any_host") != "0"
                ):
                    _refuse(errno.EINVAL, path)
            case _:
                _refuse(errno.EPERM, path)
        path.symlink_to(where)

    def _listen(self, port):
        address = self._address(port)
        if address[0] not in ("tcp", "rdma") or not address[1]:
            _refuse(errno.EINVAL, port)
        if address[:2] in self.down:
            _refuse(errno.EADDRNOTAVAIL, port)
        for other in self.names("ports"):
            listening = other != port and self.names("ports", other, "subsystems")
            if listening and self._address(other) == address:
                _refuse(errno.EADDRINUSE, port)

    def _address(self, port):
        return tuple(
            self.read("ports", port, f"addr_{key}") for key in ("trtype", "traddr", "trsvcid")
        )

    def unlink(self, *parts):
        self.step(f"unlink {'/'.join(parts)}")
        self._unlink(*parts)

    @_atomic
    def _unlink(self, *parts):
        path = self.root.joinpath(*parts)
        if os.path.lexists(path):
            path.unlink()

    # Attributes.

    def write(self, value, *parts):
        self.step(f"write {'/'.join(parts)}={value}")
        self._write(value, *parts)

    @_atomic
    def _write(self, value, *parts):
        path = self.root.joinpath(*parts)
        if not path.is_file():
            _refuse(errno.ENOENT, path)
        match parts:
            case ("subsystems", nqn, "namespaces", number, name):
                value = self._write_namespace(nqn, int(number), path, name, value)
            case ("subsystems", nqn, name):
                self._check_subsystem(nqn, path, name, value)
            case ("ports", port, name):
                if self.names("ports", port, "subsystems"):
                    _refuse(errno.EACCES, path)
                if name == "addr_trtype" and value not in ("tcp", "rdma", "loop", "fc"):
                    _refuse(errno.EINVAL, path)
        path.write_text(value + "\n")

    def _check_subsystem(self, nqn, path, name, value):
        if name in ("attr_serial", "attr_model"):
            limit = 20 if name == "attr_serial" else 40
            if nqn in self.discovered or not 0 < len(value) <= limit:
                _refuse(errno.EINVAL, path)
        hosts = self.names("subsystems", nqn, "allowed_hosts")
        if name == "attr_allow_any_host" and value == "1" and hosts:
            _refuse(errno.EINVAL, path)

    def _write_namespace(self, nqn, nsid, path, name, value):
        enabled = (path.parent / "enable").read_text().strip() == "1"
        device = (path.parent / "device_path").read_text().strip()
        if name in ("device_path", "device_uuid", "device_nguid") and enabled:
            _refuse(errno.EBUSY, path)
        if name in ("device_uuid", "device_nguid"):
            value = str(uuid.UUID(value))
        if name == "enable" and value == "1":
            if not os.path.exists(device):
                _refuse(errno.ENOENT, device)
            self.sizes[nqn, nsid] = os.stat(device).st_size
        if name == "revalidate_size":
            if not enabled or value != "1":
                _refuse(errno.EINVAL, path)
            self.sizes[nqn, nsid] = os.stat(device).st_size
            return ""
        return value

    # For tests.

    def tree(self):
        """All directories and links, as text, and the attributes that differ from their start."""
        found = set()
        for base, folders, files in os.walk(self.root):
            for name in [*folders, *files]:
                path = pathlib.Path(base, name)
                if path.is_dir():
                    found.add(str(path.relative_to(self.root)))
        return found

    def visible(self):
        """What hosts can reach: {(host, namespace uuid): device}."""
        found = {}
        linked = {path.name for path in self.root.glob("ports/*/subsystems/*")}
        for nqn in linked:
            for host in self.names("subsystems", nqn, "allowed_hosts"):
                for number in self.names("subsystems", nqn, "namespaces"):
                    where = ("subsystems", nqn, "namespaces", number)
                    if self.read(*where, "enable") == "1":
                        key = (host, self.read(*where, "device_uuid"))
                        found[key] = self.read(*where, "device_path")
        return found
