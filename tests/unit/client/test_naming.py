# SPDX-License-Identifier: Apache-2.0
"""Properties of the names and sizes that several parts compute."""

import hashlib
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumo_client import naming
from kumo_client.schemas.common import MAX_CAPACITY_GIB
from kumo_client.schemas.node import ArrayIdentity

SECTOR = 512
CAPACITIES = st.integers(1, MAX_CAPACITY_GIB)
CLASSES = st.sampled_from(["plain", "replicated"])
IDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=60)
# An alias without surrounding white space or control characters, as the schema admits.
ALIASES = st.text(
    st.characters(categories=["L", "N", "P", "S", "Mn"]), min_size=1, max_size=60
).filter(lambda text: text == text.strip())


def md_data_offset(size):
    """Bytes that mdadm 4 keeps at the head of a leg of ``size`` bytes (super1.c)."""
    sectors = size // SECTOR
    if sectors - 64 * 2 >= 200 * 1024 * 1024 * 2:
        bitmap = 128 * 2
    elif sectors - 4 * 2 > 8 * 1024 * 1024 * 2:
        bitmap = 64 * 2
    else:
        bitmap = 4 * 2
    head_room = 128 * 1024 * 2
    while head_room << 10 > sectors and head_room > 2:
        head_room >>= 1
    offset = 12 * 2 + bitmap + head_room
    return -(-offset // 2048) * 2048 * SECTOR


@given(CAPACITIES, st.integers(1, 3))
def test_a_replica_is_never_smaller_than_the_volume(gib, replicas):
    size = naming.replica_bytes(gib, replicas)
    assert size >= gib * naming.GIB
    assert size % naming.EXTENT == 0
    assert (size == gib * naming.GIB) == (replicas == 1)


@given(CAPACITIES)
def test_an_array_is_never_smaller_than_the_volume(gib):
    size = naming.replica_bytes(gib, 2)
    assert size - md_data_offset(size) >= gib * naming.GIB


@given(CAPACITIES, CAPACITIES, st.integers(1, 3))
def test_larger_volumes_have_larger_replicas(one, other, replicas):
    small, large = sorted((one, other))
    difference = naming.replica_bytes(large, replicas) - naming.replica_bytes(small, replicas)
    assert difference >= (large - small) * naming.GIB


@given(IDS, IDS, CLASSES)
def test_a_subsystem_nqn_is_valid(node, host, io_class):
    nqn = naming.subsystem_nqn(node, host, io_class)
    head, _, digest = nqn.rpartition(":")
    assert head == "nqn.2014-08.org.nvmexpress:uuid"
    assert str(uuid.UUID(digest)) == digest
    assert len(nqn.encode()) <= 223
    assert nqn == naming.subsystem_nqn(node, host, io_class)


@given(st.sets(st.tuples(IDS, IDS, CLASSES), min_size=2, max_size=6))
def test_subsystem_nqns_are_distinct(keys):
    assert len({naming.subsystem_nqn(*key) for key in keys}) == len(keys)


def test_the_subsystem_nqn_is_fixed():
    """Nodes and provisioners of different releases must agree."""
    assert (
        naming.subsystem_nqn("node-1", "nqn.2014-08.org.nvmexpress:uuid:h", "plain")
        == "nqn.2014-08.org.nvmexpress:uuid:84b8e13c-947a-5b01-89d9-de05bf48d47a"
    )


@given(ALIASES)
def test_an_array_name_fits_and_is_a_prefix(alias):
    name = naming.array_name(alias)
    assert 1 <= len(name.encode()) <= 32
    assert len(name) <= 27
    assert alias.startswith(name)
    if len(alias[:27].encode()) <= 32:
        assert name == alias[:27]
    else:
        assert len(name.encode()) > 32 - 4


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("volume-6f5c2f0e-3c52-5b0c-9d5c-2f6a3f1f9a4e", "volume-6f5c2f0e-3c52-5b0c-9"),
        ("short", "short"),
        ("é" * 27, "é" * 16),
        ("x" + "é" * 27, "x" + "é" * 15),
        ("日本" * 10, "日本" * 5),
        ("💾" * 27, "💾" * 8),
        ("a" * 22 + "é" * 5, "a" * 22 + "é" * 5),
    ],
)
def test_array_names(alias, name):
    assert naming.array_name(alias) == name
    assert ArrayIdentity(uuid=str(uuid.uuid4()), name=name).name == name


def test_a_longer_array_name_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        ArrayIdentity(uuid=str(uuid.uuid4()), name="é" * 17)


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.just("."), max_size=70))
def test_host_names_are_short_and_without_dots(hostname):
    name = naming.host_name(hostname)
    assert len(name) <= 32
    assert "." not in name
    if len(hostname) > 32:
        assert name == hashlib.md5(hostname.encode()).hexdigest()


def test_host_names():
    assert naming.host_name("Compute1.Example.org") == "compute1-example-org"
    assert re.fullmatch("[0-9a-f]{32}", naming.host_name("compute1.a-long-domain.example.org"))


def test_classes():
    assert [naming.io_class(count) for count in (1, 2, 3)] == ["plain", "replicated", "replicated"]
