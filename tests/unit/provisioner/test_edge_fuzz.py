# SPDX-License-Identifier: Apache-2.0
"""Whatever JSON comes, the answer is one of ours and nothing half-made stays."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from kumo_client import errors
from kumo_client.schemas import backend, host, snapshot, volume
from kumo_provisioner.db import models
from tests.unit.provisioner.conftest import NQN

PATHS = {
    "/volumes": volume.VolumeCreate,
    "/clone_volume": volume.CloneCreate,
    "/snapshots": snapshot.SnapshotCreate,
    "/snapshot_volumes": snapshot.SnapshotVolumeCreate,
    "/host_probe": host.HostProbe,
    "/publish": host.PublishRequest,
    "/unpublish": host.UnpublishRequest,
    "/backends": backend.BackendCreate,
}
KNOWN = "11111111-2222-4333-8444-555555555555"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.integers(0, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from([KNOWN, KNOWN.upper(), NQN, "host-1", "1", "", "THIN", "NVMeoF", "node"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@st.composite
def requests(draw):
    path = draw(st.sampled_from(sorted(PATHS)))
    fields = PATHS[path].model_fields
    names = [field.alias or name for name, field in fields.items()]
    body = {name: draw(VALUES) for name in names if draw(st.booleans())}
    if draw(st.booleans()):
        body |= {"alias": draw(st.sampled_from("ab")), "capacity": 1, "volId": KNOWN}
        body |= {"hostId": "host-1", "hostNqn": NQN, "uuid": KNOWN, "volumeID": KNOWN}
        body |= {"sourceVolumeId": KNOWN}
    return path, body


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests())
def test_no_body_breaks_anything(web, core, request_of):
    path, body = request_of
    answer = web.post(path, json=body)
    content = answer.json()
    assert answer.status_code < 500 or content["status"] == "BackendUnavailable", content
    assert content["status"]
    assert isinstance(content["description"], str)
    assert not any(text in answer.text for text in errors.RESERVED_TEXTS)
    with core.db.read() as session:
        held = {*session.scalars(select(models.Replica.uuid))}
        held |= {*session.scalars(select(models.SnapshotPart.uuid))}
        unfinished = session.scalars(
            select(models.Volume).where(models.Volume.status != models.AVAILABLE)
        ).all()
    assert held == core.nodes.objects()
    assert unfinished == []
    assert core.locks.held() == 0
