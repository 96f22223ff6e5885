# SPDX-License-Identifier: Apache-2.0
"""Migrated and seeded databases, made once per set of versions and copied for every stack.

The migrations of the three services take most of a minute; a copy takes milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from lab.errors import LabError
from lab.openstack import cinder, config, glance, keystone, keystone_seed

DATABASES = ("keystone", "glance", "cinder")
# What decides the content of the databases.
DISTRIBUTIONS = ("keystone", "glance", "cinder", "oslo.db", "SQLAlchemy", "alembic")

Report = Callable[[str], None]


class PristineError(LabError):
    """A database could not be prepared."""


def installed_versions() -> dict[str, str]:
    """Versions of the distributions that decide the content of the databases.

    :raises PristineError: one is not installed.
    """
    try:
        return {name: metadata.version(name) for name in DISTRIBUTIONS}
    except metadata.PackageNotFoundError as error:
        raise PristineError(
            f"{error.name} is not installed", "Install this package with its extra [openstack]."
        ) from error


def cache_key(versions: Mapping[str, str], recipe: str) -> str:
    """Key of a database set: the versions that migrate it and the ``recipe`` that seeds it."""
    lines = [f"{name}={versions[name]}" for name in sorted(versions)]
    return hashlib.sha256("\n".join([*lines, recipe]).encode()).hexdigest()[:16]


def recipe() -> str:
    """The source of everything that seeds the databases."""
    modules = (keystone, keystone_seed, sys.modules[__name__])
    return "".join(Path(str(module.__file__)).read_text() for module in modules)


def provide(report: Report) -> Path:
    """The directory with the pristine databases of the installed versions, made if missing.

    :raises PristineError: a migration failed; the message holds the end of its output.
    """
    root = config.cache_root() / "openstack"
    root.mkdir(parents=True, exist_ok=True)
    target = root / cache_key(installed_versions(), recipe())
    with _locked(root / "lock"):
        if not target.is_dir():
            report("preparing OpenStack databases (once per set of versions)")
            with tempfile.TemporaryDirectory(dir=root, prefix="new-") as scratch:
                _build(Path(scratch), report)
                os.rename(Path(scratch) / "db", target)
    return target


def copy(source: Path, settings: config.Settings) -> None:
    """Give the stack its own databases, with its address and its passwords, unless it has them."""
    if settings.database("keystone").exists():
        return
    for name in reversed(DATABASES):
        # Keystone's comes last, under its name when complete: it tells that all are there.
        fresh = settings.directory("db") / "new.db"
        shutil.copyfile(source / f"{name}.db", fresh)
        fresh.chmod(0o600)
        if name == "keystone":
            keystone.personalise(fresh, settings.address, settings.passwords)
        fresh.rename(settings.database(name))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Tools:
    """Runs the services' own tools from several threads, until it is cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._cancelled = False

    def run(self, arguments: list[str], env: dict[str, str], cwd: Path) -> None:
        """Run Python with ``arguments`` to its end.

        :raises PristineError: it failed, or was cancelled.
        """
        with self._lock:
            if self._cancelled:
                raise PristineError(f"{' '.join(arguments)} was cancelled")
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._running.append(process)
        output, _ = process.communicate()
        with self._lock:
            self._running.remove(process)
        if process.returncode:
            tail = "\n".join(output.splitlines()[-20:])
            raise PristineError(f"{' '.join(arguments)} failed with {process.returncode}:\n{tail}")

    def cancel(self) -> None:
        """End what runs and start nothing more."""
        with self._lock:
            self._cancelled = True
            for process in self._running:
                process.kill()


def _build(scratch: Path, report: Report) -> None:
    settings = config.Settings.new(keystone.PLACEHOLDER, scratch)
    keystone_conf = keystone.write_config(settings)
    glance_conf = glance.write_config(settings)
    cinder.write_config(settings)
    keystone_manage = [_script("keystone-manage"), "--config-file", str(keystone_conf)]
    env = _environment(settings)
    password = settings.passwords["admin"]
    bootstrap = [
        *keystone_manage,
        *["bootstrap", "--bootstrap-region-id", config.REGION],
        *[f"--bootstrap-{kind}-url={keystone.BOOTSTRAP_URL}" for kind in ("public", "internal")],
    ]
    jobs: dict[str, list[list[str]]] = {
        "keystone": [
            [*keystone_manage, "db_sync"],
            bootstrap,
            ["-m", "lab.openstack.keystone_seed"],
        ],
        "glance": [[_script("glance-manage"), "--config-file", str(glance_conf), "db", "sync"]],
        "cinder": [[_script("cinder-manage"), *cinder.config_args(settings), "db", "sync"]],
    }
    env |= {"OS_BOOTSTRAP_PASSWORD": password, "KUMO_SEED_PASSWORD": password}

    def run(name: str) -> None:
        for arguments in jobs[name]:
            tools.run(arguments, env, scratch)
        _settle(settings.database(name))
        report(f"database of {name} ready")

    tools = Tools()
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for done in [pool.submit(run, name) for name in jobs]:
                done.result()
        except BaseException:
            # An interrupt too: without this the pool would wait for every tool to end.
            tools.cancel()
            raise


def _script(name: str) -> str:
    return str(config.BIN / name)


def _environment(settings: config.Settings) -> dict[str, str]:
    env = config.service_environment(settings)
    return {**env, "OS_KEYSTONE_CONFIG_DIR": str(settings.state_dir / "keystone")}


def _settle(database: Path) -> None:
    """Make the database write-ahead logged, which SQLite remembers in the file itself, so that
    readers and a writer in different processes do not wait for each other; then fold the log in."""
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
