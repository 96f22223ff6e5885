# SPDX-License-Identifier: Apache-2.0
import pytest

from lab.openstack import check


class FakeCloud:
    """The openstack command over a cloud held in a few dicts."""

    def __init__(self):
        self.types, self.images, self.volumes, self.number = set(), {}, {}, 0
        self.volume_state, self.new_volume = "up", ["creating", "available"]

    def json(self, *words):
        command = words[:3] if words[1] == "type" else words[:2]
        return getattr(self, "_" + "_".join(command))(*words)

    def run(self, *words):
        kind, name = words[-3], words[-1]
        if kind == "type":
            self.types.remove(name)
        else:
            del {"image": self.images, "volume": self.volumes}[kind][name]

    def _new(self):
        self.number += 1
        return f"id{self.number}"

    def _token_issue(self, *_):
        return {"id": "gAAA"}

    def _volume_service(self, *_):
        return [
            {"Binary": "cinder-scheduler", "Host": "kumo", "State": "up"},
            {"Binary": "cinder-volume", "Host": "kumo@fake", "State": self.volume_state},
        ]

    def _image_create(self, *words):
        identity = self._new()
        with open(words[words.index("--file") + 1], "rb") as file:
            self.images[identity] = len(file.read())
        return {"id": identity}

    def _image_show(self, *words):
        return {"status": "active", "size": self.images[words[-1]]}

    def _volume_type_create(self, *_):
        identity = self._new()
        self.types.add(identity)
        return {"id": identity}

    def _volume_create(self, *words):
        identity = self._new()
        self.volumes[identity] = list(self.new_volume)
        return {"id": identity}

    def _volume_show(self, *words):
        states = self.volumes[words[-1]]
        return {"status": states.pop(0) if len(states) > 1 else states[0]}

    def _volume_list(self, *_):
        return [{"ID": identity} for identity in self.volumes]


@pytest.fixture
def cloud():
    return FakeCloud()


def test_a_good_cloud_passes_and_is_left_as_it_was(cloud):
    lines = []
    check.check(cloud, "fake", lines.append)
    assert [line.split(":")[0] for line in lines] == ["token", "services", "image", "volume"]
    assert (cloud.types, cloud.images, cloud.volumes) == (set(), {}, {})


def test_a_volume_service_that_is_down_fails(cloud):
    cloud.volume_state = "down"
    with pytest.raises(check.CheckFailedError, match=r"cinder-volume of fake.*'up'.*'down'"):
        check.check(cloud, "fake", print)


def test_a_backend_that_does_not_run_fails(cloud):
    with pytest.raises(check.CheckFailedError, match=r"cinder-volume of other.*None"):
        check.check(cloud, "other", print)


def test_a_volume_in_error_fails_and_its_type_is_deleted(cloud):
    cloud.new_volume = ["creating", "error"]
    with pytest.raises(check.CheckFailedError, match="'available', saw 'error'"):
        check.check(cloud, "fake", print)
    assert cloud.types == set()
