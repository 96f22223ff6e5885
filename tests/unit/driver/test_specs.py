# SPDX-License-Identifier: Apache-2.0
"""Extra specs over options."""

import pytest
from cinder import exception

from cinder_kumo import conf, specs


@pytest.fixture
def config(cinder_conf):
    made = cinder_conf("kioxia_num_replicas = 2", "kioxia_max_bw_per_gb = 70")
    conf.register(made)
    return made


def test_without_extra_specs_the_options_hold(config):
    wish = specs.wish(config, {})
    assert (wish.num_replicas, wish.max_bw_per_gb, wish.provisioning_type) == (2, 70, "THICK")
    assert (wish.block_size, wish.span_allowed, wish.same_rack_allowed) == (4096, True, False)


def test_extra_specs_override_the_options(config):
    wish = specs.wish(
        config,
        {
            "kumo:num_replicas": "3",
            "kumo:provisioning_type": "thin",
            "kumo:max_replica_down_time": "15",
            "kumo:block_size": "512",
            "kumo:same_rack_allowed": "<is> True",
            "kumo:max_iops_per_gb": "1",
            "kumo:desired_iops_per_gb": "2",
            "kumo:max_bw_per_gb": "3",
            "kumo:desired_bw_per_gb": "4",
            "kumo:reserved_space_percentage": "5",
            "kumo:span_allowed": "false",
            "volume_backend_name": "fast",
            "multiattach": "<is> True",
        },
    )
    assert wish == specs.Wish(3, "THIN", 15, 512, True, 1, 2, 3, 4, 5, False)
    assert wish.storage_class("az1").wire() == {
        "numReplicas": 3,
        "racks": [],
        "regions": [],
        "zones": ["az1"],
        "blockSize": 512,
        "maxIOPSPerGB": 1,
        "desiredIOPSPerGB": 2,
        "maxBWPerGB": 3,
        "desiredBWPerGB": 4,
        "sameRackAllowed": True,
        "maxReplicaDownTime": 15,
        "hostId": "",
        "allowSpan": False,
        "name": "",
        "shareSSDBetweenVolumes": True,
    }


def test_every_field_of_a_wish_has_a_spec():
    assert set(specs.BY_KEY) == set(specs.Wish.__dataclass_fields__)
    names = {opt.name for opt in conf.OPTS}
    assert [spec.option for spec in specs.SPECS if spec.option not in names] == []


def test_cinders_own_provisioning_key_counts(config):
    assert specs.wish(config, {"provisioning:type": "thin"}).provisioning_type == "THIN"


def test_contradiction_is_refused(config):
    with pytest.raises(exception.InvalidVolumeType, match="contradict"):
        specs.wish(config, {"provisioning:type": "thin", "kumo:provisioning_type": "THICK"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kumo:num_replicas", "0"),
        ("kumo:num_replicas", "4"),
        ("kumo:num_replicas", "two"),
        ("kumo:provisioning_type", "medium"),
        ("kumo:block_size", "1024"),
        ("kumo:same_rack_allowed", "perhaps"),
        ("kumo:max_iops_per_gb", "-1"),
        ("kumo:reserved_space_percentage", "1001"),
        ("provisioning:type", "fat"),
    ],
)
def test_wrong_value_is_named(config, name, value):
    with pytest.raises(exception.InvalidVolumeType, match=f"{name}={value}"):
        specs.wish(config, {name: value})


@pytest.mark.parametrize("name", ["kumo:replicas", "kumo:", "kumo:Num_Replicas"])
def test_unknown_key_is_refused_with_the_known_ones(config, name):
    with pytest.raises(exception.InvalidVolumeType) as caught:
        specs.wish(config, {name: "2"})
    assert f"extra spec {name} is not known" in str(caught.value)
    assert "kumo:num_replicas" in str(caught.value)


def test_volume_without_type_has_no_extra_specs(config, make_volume, volume_type):
    assert specs.extra_specs_of(make_volume()) == {}
    assert specs.extra_specs_of(make_volume(type=volume_type(kumo__num_replicas="2"))) == {
        "kumo:num_replicas": "2"
    }
