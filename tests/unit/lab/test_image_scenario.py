# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.errors import LabError, ScenarioFailedError
from lab.scenario import Context
from lab.scenarios import image

MARK = b"QFI\xfb"


class FakeCloud:
    """The openstack command and Cinder's statuses. A "qcow2" file is a mark before raw content."""

    def __init__(self):
        self.types, self.images, self.volumes, self.closed = {}, {}, {}, False
        self.names = {}
        self.damage = lambda content: content
        self.cli = self
        self.number = 0

    def _new(self):
        self.number += 1
        return f"id{self.number}"

    def json(self, *words):
        option = dict(itertools.pairwise(words))
        identity = self._new()
        if words[:3] == ("volume", "type", "create"):
            self.types[words[-1]] = words
            return {"id": identity}
        if words[:2] == ("image", "show"):
            return {"status": "active" if words[-1] in self.images else "error"}
        if words[:2] == ("volume", "create"):
            assert option["--type"] in self.types
            content = self.images[option["--image"]].removeprefix(MARK)
            self.volumes[identity], self.names[identity] = content, words[-1]
            return {"id": identity}
        assert words[:2] == ("image", "create")
        if "--volume" in option:
            content = self.damage(self.volumes[option["--volume"]])
            self.images[identity] = MARK + content
            return {"image_id": identity}
        self.images[identity] = Path(option["--file"]).read_bytes()
        return {"id": identity}

    def run(self, *words):
        if words[:2] == ("image", "save"):
            Path(words[3]).write_bytes(self.images[words[4]])
            return
        assert "delete" in words
        things = {"volume": self.volumes, "image": self.images}[words[0]]
        if words[1] == "type":
            things = self.types
        for word in words[words.index("delete") + 1 :]:
            del things[word]

    def wait(self, kind, identifier, wanted, timeout=90.0):
        status = "available" if identifier in self.volumes else "gone"
        if status != wanted:
            raise LabError(f"{kind} {identifier} is {status}")
        return 0.1

    def close(self):
        self.closed = True


def qemu_img(argv, **_):
    """qemu-img over the files of :class:`FakeCloud`."""
    code, text = 0, ""
    match argv[1]:
        case "convert":
            Path(argv[-1]).write_bytes(MARK + Path(argv[-2]).read_bytes())
        case "info":
            text = json.dumps({"virtual-size": image.GIB})
        case "compare":
            one, other = (Path(name).read_bytes().removeprefix(MARK) for name in argv[-2:])
            code = int(other[: len(one)] != one or any(other[len(one) :]))
            text = "Content mismatch at offset 0!" if code else "Images are identical."
    return subprocess.CompletedProcess(argv, code, stdout=text, stderr="")


class Services:
    """Stack, control plane and cinder-volume: what runs, in ``events``."""

    memory_kib = staticmethod(lambda: {"mariadb": 61440})

    def __init__(self, monkeypatch, directory, cloud):
        self.events, self.left = [], [{}, {}]
        (directory / "ca.pem").write_text("certificate")
        (directory / "token").write_text("secret")
        plane = SimpleNamespace(
            start=lambda progress: self.events.append("plane"),
            ca_file=directory / "ca.pem",
            token_file=directory / "token",
            url="https://192.0.2.1:8090",
            kumo_json=self._show,
        )
        self.nodes = {"image-raw-1": 1, "image-qcow2-2": 2}
        self.cloud = cloud
        self.directory = directory / "openstack-shared"
        stack = SimpleNamespace(
            start=lambda progress: self.events.append("stack"),
            stop=lambda: self.events.append("stack stopped"),
            memory_kib=self.memory_kib,
        )
        service = SimpleNamespace(
            start=self._start_volume, stop=lambda: self.events.append("volume stopped")
        )
        monkeypatch.setattr(image, "ControlPlane", lambda lab: plane)
        monkeypatch.setattr(image, "Stack", lambda *_, **__: self._open(stack))
        monkeypatch.setattr(image, "GuestVolume", lambda *_: service)
        monkeypatch.setattr(image, "inventory", lambda lab: self.left.pop(0))

    def _open(self, stack):
        self.directory.mkdir(exist_ok=True)
        return stack

    def _show(self, _kind, _verb, volume):
        nodes = range(self.nodes[self.cloud.names[volume]])
        return {"location": [{"backend": {"persistentID": f"node{n}"}} for n in nodes]}

    def _start_volume(self, backends, files):
        self.events.append("volume")
        # Every file that the backend names is put there.
        for value in backends[image.BACKEND].values():
            assert not value.startswith("/") or value in files


@pytest.fixture
def cloud(monkeypatch):
    cloud = FakeCloud()
    monkeypatch.setattr(image, "Cinder", lambda stack, netns: cloud)
    monkeypatch.setattr(subprocess, "run", qemu_img)
    monkeypatch.setattr(image, "IMAGE_BYTES", 4096)
    return cloud


@pytest.fixture
def services(monkeypatch, tmp_path, cloud):
    return Services(monkeypatch, tmp_path, cloud)


@pytest.fixture
def lab(tmp_path):
    compute = SimpleNamespace(name="compute1", put=lambda *_: None, run=lambda command: None)
    return SimpleNamespace(
        netns="kumo-x", state_dir=tmp_path, processes=SimpleNamespace(), compute=[compute]
    )


@pytest.fixture
def context(lab, screen, clock):
    return Context(lab, screen, clock=clock)


def test_each_format_and_each_type_goes_there_and_back(context, cloud, services):
    image.run(context)
    steps = [step.text for step in context.steps]
    for replicas, form in ((1, "raw"), (2, "qcow2")):
        name = f"image-{form}-{replicas}"
        assert f"openstack volume type create image-{replicas}" in steps
        assert f"openstack volume create --image image-{form} {name}" in steps
        assert f"{name}-back is active" in steps
    assert all(step.ok for step in context.steps)
    assert (cloud.images, cloud.volumes, cloud.types) == ({}, {}, {})
    assert cloud.closed
    assert services.events[-2:] == ["volume stopped", "stack stopped"]


def test_what_ran_and_was_left_before_is_removed_first(context, cloud, services):
    services.directory.mkdir()
    (services.directory / "of an earlier run").touch()
    image.run(context)
    assert services.events[:2] == ["volume stopped", "stack stopped"]
    assert services.events.index("stack") < services.events.index("volume")
    assert list(services.directory.iterdir()) == []


def test_replicas_on_one_node_fail(context, cloud, services):
    services.nodes["image-qcow2-2"] = 1
    with pytest.raises(ScenarioFailedError, match="image-qcow2-2 has replicas on 1 nodes"):
        image.run(context)


@pytest.mark.parametrize(
    "damage", [lambda content: b"x" + content[1:], lambda content: content + b"\0\0rest"]
)
def test_other_content_fails(context, cloud, services, damage):
    cloud.damage = damage
    with pytest.raises(ScenarioFailedError, match="Content mismatch"):
        image.run(context)
    assert cloud.closed
    assert services.events[-2:] == ["volume stopped", "stack stopped"]


def test_image_that_did_not_become_active_fails(context, cloud, services, monkeypatch):
    monkeypatch.setattr(cloud, "damage", lambda content: content)
    real = cloud.json
    monkeypatch.setattr(
        cloud,
        "json",
        lambda *words: {"status": "queued"} if words[:2] == ("image", "show") else real(*words),
    )
    with pytest.raises(ScenarioFailedError, match="the image is queued"):
        image.run(context)


def test_what_is_left_on_a_machine_fails(context, cloud, services):
    services.left = [{"compute1": []}, {"compute1": ["array md127"]}]
    with pytest.raises(ScenarioFailedError, match="md127"):
        image.run(context)


def test_services_of_a_kept_lab_stay(lab, screen, clock, cloud, services):
    image.run(Context(lab, screen, keep=True, clock=clock))
    assert services.events.count("stack stopped") == 1
    assert services.events.count("volume stopped") == 1
    assert services.events[-1] == "volume"
