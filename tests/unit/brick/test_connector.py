# SPDX-License-Identifier: Apache-2.0
"""Which volumes are ours, and what holds for each verb whatever the volume is."""

import os

import pytest
from os_brick import exception, utils
from os_brick.initiator.connectors import nvmeof
from os_brick.privileged import rootwrap
from oslo_config import cfg

from os_brick_nvmeof import connector, errors, host, locks, plain, props, replicated

VOLUME = "c20aba21-6ef6-446b-b374-45733b4883ba"
LEGS = ("9b30ec12-75b9-4a53-be32-111111111111", "9b30ec12-75b9-4a53-be32-222222222222")
NQN = "nqn.2014-08.org.nvmexpress:uuid:beaae2de-3a97-5be1-a739-6ac4bc5bf138"
HOST = "nqn.2014-08.org.nvmexpress:uuid:beaae2de-3a97-4be1-a739-6ac4bc5bf138"


def properties(legs=1, ours=True, nqn=NQN, **more):
    stock = {
        "vol_uuid": VOLUME,
        "alias": "volume-1",
        "writable": True,
        "replica_count": legs,
        "volume_replicas": [
            {"vol_uuid": leg, "target_nqn": nqn, "portals": [("10.0.0.1", "4420", "tcp")]}
            for leg in LEGS[:legs]
        ],
    }
    kumo = {"kumo": {"version": 1, "capacity": 1, "host_nqn": HOST}} if ours else {}
    return stock | kumo | more


class Engine:
    """Attaches volumes in memory; errors are put into ``failing`` by verb."""

    def __init__(self, lock_path):
        self.attached, self.failing, self.contexts, self.seen = {}, {}, [], []
        self._lock_path = lock_path

    def __call__(self, volume):
        return self

    def _enter(self, verb, context, volume):
        self.contexts.append(context)
        self.seen.append((verb, volume))
        # The volume is locked: nobody else gets its byte of the file.
        handle = os.open(os.path.join(self._lock_path, locks.FILE), os.O_RDWR)
        free = locks._try(handle, locks._offset(f"volume-{volume.uuid}"))
        os.close(handle)
        assert free is (verb == "paths")
        if verb in self.failing:
            raise self.failing[verb]

    def attach(self, context, volume):
        self._enter("attach", context, volume)
        return self.attached.setdefault(volume.uuid, "/dev/nvme0n1")

    def detach(self, context, volume, force):
        self._enter("detach", context, volume)
        self.forced = force
        self.attached.pop(volume.uuid, None)

    def extend(self, context, volume):
        self._enter("extend", context, volume)
        return 2 << 30

    def paths(self, context, volume):
        self._enter("paths", context, volume)
        return list(self.attached.values())


class Stock:
    """What reached stock's verbs."""

    def __init__(self, monkeypatch):
        self.calls = []
        for verb, answer in (
            ("connect_volume", {"type": "block", "path": "/dev/stock"}),
            ("disconnect_volume", None),
            ("extend_volume", 7),
            ("get_volume_paths", ["/dev/stock"]),
        ):
            monkeypatch.setattr(nvmeof.NVMeOFConnector, verb, self._verb(verb, answer))

    def _verb(self, verb, answer):
        def call(_connector, *arguments):
            self.calls.append((verb, *arguments))
            return answer

        return call


@pytest.fixture
def engine(monkeypatch, tmp_path):
    engine = Engine(tmp_path)
    monkeypatch.setattr(connector, "_engine", engine)
    monkeypatch.setattr(connector, "LocalHost", lambda: "the host")
    monkeypatch.setattr(utils, "get_host_nqn", lambda: "nqn.of.this.host")
    monkeypatch.setattr(utils, "get_nvme_host_id", lambda _uuid: "host-id")
    cfg.CONF.set_override("lock_path", str(tmp_path), "os_brick")
    yield engine
    cfg.CONF.clear_override("lock_path", "os_brick")


@pytest.fixture
def stock(monkeypatch):
    return Stock(monkeypatch)


@pytest.fixture
def ours(engine):
    return connector.KumoNVMeOFConnector("sudo")


def test_our_volumes_are_attached_by_us(ours, engine, stock):
    given = properties()
    before = repr(given)
    assert ours.connect_volume(given) == {"type": "block", "path": "/dev/nvme0n1"}
    assert repr(given) == before
    assert ours.get_volume_paths(given) == ["/dev/nvme0n1"]
    assert ours.extend_volume(given) == 2 << 30
    assert ours.disconnect_volume(given, None) is None
    assert engine.attached == {}
    assert [verb for verb, _volume in engine.seen] == ["attach", "paths", "extend", "detach"]
    assert stock.calls == []


@pytest.mark.parametrize("nqn", ["nqn.2019-10.com.kioxia:kumoscale:a", HOST])
@pytest.mark.parametrize("legs", [1, 2])
def test_volumes_of_others_reach_stock_as_they_are(ours, engine, stock, nqn, legs):
    given = properties(legs, ours=False, nqn=nqn)
    assert ours.connect_volume(given)["path"] == "/dev/stock"
    ours.disconnect_volume(given, {"path": "/dev/x"}, force=True, ignore_errors=True)
    assert ours.extend_volume(given) == 7
    assert ours.get_volume_paths(given) == ["/dev/stock"]
    assert [call[:2] for call in stock.calls[:3]] == [
        ("connect_volume", given),
        ("disconnect_volume", given),
        ("extend_volume", given),
    ]
    assert stock.calls[1][2:] == ({"path": "/dev/x"}, True, True)
    assert isinstance(stock.calls[3][1], nvmeof.NVMeOFConnProps)
    assert all(call[1] is given for call in stock.calls[:3])
    assert engine.seen == []


def test_other_formats_reach_stock(ours, engine, stock):
    given = {"target_nqn": NQN, "vol_uuid": VOLUME, "portals": [("10.0.0.1", "4420", "tcp")]}
    ours.connect_volume(given)
    ours.disconnect_volume(given, None)
    assert [call[0] for call in stock.calls] == ["connect_volume", "disconnect_volume"]


def test_what_stock_has_parsed_reaches_stock(ours, engine, stock):
    parsed = nvmeof.NVMeOFConnProps(properties())
    assert ours.get_volume_paths(parsed, {"path": "/dev/x"}) == ["/dev/stock"]
    assert stock.calls == [("get_volume_paths", parsed, {"path": "/dev/x"})]


def test_a_volume_of_ours_that_the_in_tree_driver_attached_is_recognised(ours, engine, stock):
    given = properties(2, ours=False)
    ours.connect_volume(given)
    assert [call[0] for call in stock.calls] == ["connect_volume"]
    assert ours.extend_volume(given) == 2 << 30
    ours.disconnect_volume(given, {"path": "/dev/md/volume-1"})
    assert [(verb, volume.device_path) for verb, volume in engine.seen] == [
        ("extend", ""),
        ("detach", "/dev/md/volume-1"),
    ]


def test_the_path_that_nova_remembers(ours, engine):
    ours.disconnect_volume(properties(device_path="/dev/nvme7n1"), None)
    assert engine.seen[0][1].device_path == "/dev/nvme7n1"


@pytest.mark.parametrize(
    ("force", "ignore_errors", "raised"),
    [(False, False, True), (False, True, True), (True, False, True), (True, True, False)],
)
def test_errors_of_a_detach(ours, engine, caplog, force, ignore_errors, raised):
    engine.failing["detach"] = errors.StillInUseError("somebody has it open", volume=VOLUME)
    arguments = (properties(), None, force, ignore_errors)
    if raised:
        with pytest.raises(errors.StillInUseError, match="somebody has it open"):
            ours.disconnect_volume(*arguments)
    else:
        ours.disconnect_volume(*arguments)
        assert "somebody has it open" in caplog.text


def test_force_is_passed_on(ours, engine):
    ours.disconnect_volume(properties(), None, force=True)
    assert engine.forced is True


def test_a_failed_attach_frees_the_volume(ours, engine):
    engine.failing["attach"] = errors.StaleError("old data", volume=VOLUME)
    with pytest.raises(errors.StaleError):
        ours.connect_volume(properties())
    del engine.failing["attach"]
    assert ours.connect_volume(properties())["path"] == "/dev/nvme0n1"


def test_bad_properties_are_told_before_anything_is_done(ours, engine):
    with pytest.raises(exception.InvalidConnectorProtocol, match="vol_uuid"):
        ours.connect_volume(properties(vol_uuid="x"))
    assert engine.seen == []


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), host.CommandError(("mdadm", "--stop"), 1, "mdadm: no")],
)
def test_what_the_host_refuses_is_typed(ours, engine, caplog, error):
    engine.failing.update(dict.fromkeys(("attach", "detach", "extend", "paths"), error))
    for verb in (
        ours.connect_volume,
        ours.extend_volume,
        ours.get_volume_paths,
        lambda given: ours.disconnect_volume(given, None, force=True),
    ):
        with pytest.raises(errors.HostError, match=f"volume {VOLUME}") as caught:
            verb(properties())
        assert str(error) in str(caught.value)
    ours.disconnect_volume(properties(), None, force=True, ignore_errors=True)
    assert str(error) in caplog.text


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_multipath(engine, monkeypatch, native, wanted):
    monkeypatch.setattr(connector.KumoNVMeOFConnector, "native_multipath_supported", native)
    ours = connector.KumoNVMeOFConnector("sudo", use_multipath=wanted)
    ours.connect_volume(properties())
    assert engine.contexts[0].multipath is (native and wanted)
    if wanted and not native:
        with pytest.raises(errors.MultipathError, match=r"nvme_core\.multipath=Y"):
            ours.connect_volume(properties(enforce_multipath=True))
    else:
        ours.connect_volume(properties(enforce_multipath=True))


def test_who_the_host_is(ours, engine):
    ours.connect_volume(properties())
    ours.connect_volume(properties(kumo={"version": 1}))
    assert [context.host_nqn for context in engine.contexts] == [HOST, "nqn.of.this.host"]
    assert {context.host_id for context in engine.contexts} == {"host-id"}
    assert {context.host for context in engine.contexts} == {"the host"}


def test_without_a_directory_for_locks(ours, engine):
    cfg.CONF.set_override("lock_path", None, "os_brick")
    with pytest.raises(cfg.RequiredOptError, match="lock_path"):
        ours.connect_volume(properties())


class Links:
    """The links that encryptors take over."""

    def __init__(self, monkeypatch):
        self.made, self.error = {}, None
        monkeypatch.setattr(rootwrap, "link_root", self.link)
        monkeypatch.setattr(rootwrap, "unlink_root", lambda name: self.made.pop(name))

    def link(self, target, name, force):
        if self.error:
            raise self.error
        self.made[name] = target


LINK = "/dev/disk/by-id/os-brick+dev+nvme0n1"


def test_an_encrypted_volume_has_a_link_of_its_own(ours, engine, monkeypatch):
    links = Links(monkeypatch)
    given = properties(encrypted=True)
    assert ours.connect_volume(given) == {"type": "block", "path": LINK}
    assert links.made == {LINK: "/dev/nvme0n1"}
    ours.extend_volume(given | {"device_path": LINK})
    ours.disconnect_volume(given | {"device_path": LINK}, None)
    assert links.made == {}
    assert [volume.device_path for _verb, volume in engine.seen] == [
        "",
        "/dev/nvme0n1",
        "/dev/nvme0n1",
    ]


@pytest.mark.parametrize("busy", [False, True])
def test_an_encrypted_volume_whose_link_cannot_be_made_is_taken_back(
    ours, engine, monkeypatch, caplog, busy
):
    Links(monkeypatch).error = PermissionError("no link")
    if busy:
        engine.failing["detach"] = errors.StillInUseError("somebody has it open", volume=VOLUME)
    with pytest.raises(PermissionError, match="no link"):
        ours.connect_volume(properties(encrypted=True))
    assert [verb for verb, _volume in engine.seen] == ["attach", "detach"]
    assert ("somebody has it open" in caplog.text) is busy


@pytest.mark.parametrize(("legs", "engine"), [(1, plain), (2, replicated)])
def test_an_array_has_another_engine(legs, engine):
    assert connector._engine(props.parse(properties(legs))) is engine
    for verb in ("attach", "detach", "extend", "paths"):
        assert callable(getattr(engine, verb))


def test_the_host_tells_what_it_can_do(engine, monkeypatch):
    monkeypatch.setattr(
        nvmeof.NVMeOFConnector,
        "get_connector_properties",
        classmethod(lambda cls, root_helper, *args, **kwargs: {"nqn": HOST}),
    )
    assert connector.AnnouncingConnector.get_connector_properties("sudo", multipath=True) == {
        "nqn": HOST,
        "kumo": {"version": 1, "abilities": ["freshness"]},
    }
