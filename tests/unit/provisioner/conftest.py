# SPDX-License-Identifier: Apache-2.0
"""The provisioner without network: a real database file and node models in place of clients."""

import shutil

import pytest
from starlette.testclient import TestClient

from kumo_client import errors, stamp
from kumo_client.schemas.backend import BackendCreate
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.volume import StorageClass, VolumeCreate
from kumo_provisioner import app, auth
from kumo_provisioner import conf as provisioner_conf
from kumo_provisioner.core import Core
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.nodes import Outcome, translate
from kumo_provisioner.services import backends
from tests.fakes.node_model import NodeModel
from tests.fakes.node_stamp import TAKING
from tests.unit.provisioner.transitions import WATCH

NQN = "nqn.2014-08.org.nvmexpress:uuid:host-1"
TOKEN, READER, WRITER = "admin-token", "monitor-token", "storage-token"
HOST = HostProbe(host_nqn=NQN, host_id="host-1", name="compute-1")


WATCH.listen()


@pytest.fixture(autouse=True)
def _every_transition_is_in_a_table():
    WATCH.strange.clear()
    yield
    assert not WATCH.strange


class FaultyNode:
    """A node model whose calls may be lost, before or after they take effect."""

    def __init__(self, model, nodes, port):
        self._model, self._nodes, self._port = model, nodes, port

    def __getattr__(self, name):
        method = getattr(self._model, name)

        def call(*args, **options):
            self._nodes.calls.append((self._port, name))
            fault = self._nodes.faults.get((self._port, name))
            if options.get("grow_array"):
                fault = self._nodes.faults.get((self._port, "grow_array"), fault)
            if self._port in self._nodes.down or fault == "lost request":
                raise errors.CommunicationError("no answer in time")
            if isinstance(fault, Exception):
                raise fault
            self._model.hear(self._nodes.told(name), taking=name.startswith(TAKING))
            result = method(*args, **options)
            if fault == "lost answer":
                raise errors.CommunicationError("no answer in time")
            return result

        return call


class FakeNodes:
    """In place of kumo_provisioner.nodes.Nodes; nodes are known by their port."""

    def __init__(self):
        self.models = {}
        self.down = set()
        self.faults = {}
        self.calls = []
        self.doubtful = set()
        self.stamps = None

    def told(self, name):
        """What goes with a call of this name."""
        looks = ("info", "inventory", "replica", "copy", "adoptable")
        headers = self.stamps.headers("GET" if name in looks else "PUT")
        return headers.get(stamp.HEADER, "")

    def call(self, call, *, probing=False):
        outcome = self._call(call)
        if outcome.unknown and not probing:
            self.doubtful.add(call[0].backend_id)
        return outcome

    def _call(self, call):
        address, function = call
        try:
            if address.port not in self.models:
                raise errors.CommunicationError("nobody answers there")
            node = FaultyNode(self.models[address.port], self, address.port)
            return Outcome(value=function(node))
        except errors.KumoError as exc:
            return Outcome(error=translate(exc, address))

    def call_all(self, calls, *, probing=False):
        return {key: self.call(call, probing=probing) for key, call in calls.items()}

    def close(self):
        pass

    def objects(self):
        return {
            uid
            for model in self.models.values()
            for uid in (*model.state.replicas, *model.state.snapshots)
        }

    def exports(self):
        return {export for model in self.models.values() for export in model.state.exports}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def conf():
    options = provisioner_conf.make()
    options([], project="kumo-provisioner", default_config_files=[])
    options.set_override("lock_timeout", 0, group="server")
    options.set_override("probe_failures", 2, group="reconcile")
    return options


@pytest.fixture
def core(tmp_path, conf, empty_database):
    path = tmp_path / "provisioner.db"
    shutil.copy(empty_database, path)
    made = Core(conf, Database(f"sqlite:///{path}"), FakeNodes(), Locks(0))
    yield made
    made.close()


def add_node(core, **options):
    """Register another node; gives its model."""
    location = {key: options.pop(key) for key in ("rack", "zone", "region") if key in options}
    port = 1000 + len(core.nodes.models)
    core.nodes.models[port] = NodeModel(f"node-{port}", **options)
    backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=port, **location))
    return core.nodes.models[port]


@pytest.fixture
def three(core):
    """Models of three registered nodes."""
    return [add_node(core) for _ in range(3)]


@pytest.fixture
def four(core, three):
    return [*three, add_node(core)]


def volume(alias="volume", gib=1, replicas=1, **extra):
    asked = StorageClass(num_replicas=replicas, **extra.pop("asked", {}))
    return VolumeCreate(alias=alias, capacity=gib, storage_class=asked, **extra)


@pytest.fixture
def web(core, three):
    tokens = auth.Tokens(
        {
            auth.digest(TOKEN): auth.Identity("admin", auth.ADMIN),
            auth.digest(READER): auth.Identity("reader", auth.MONITOR),
            auth.digest(WRITER): auth.Identity("writer", auth.STORAGE),
        }
    )
    application = app.make(core, tokens, background=False)
    with TestClient(application, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client
