# SPDX-License-Identifier: Apache-2.0
"""Objects as Cinder's manager hands them to a driver; no database behind them."""

import uuid

from cinder import context as cinder_context
from cinder import objects
from cinder.objects import fields
from cinder.volume import configuration
from cinder.volume import driver as cinder_driver
from oslo_config import cfg

objects.register_all()


def read_conf(path, text, group):
    """Read a cinder.conf with this text; the configuration of the backend ``group``."""
    path.write_text(text)
    cfg.CONF([], project="cinder", default_config_files=[str(path)], default_config_dirs=[])
    return configuration.Configuration(cinder_driver.volume_opts, config_group=group)


def volume_type(**extra_specs):
    """A volume type; ``kumo__num_replicas`` stands for the extra spec ``kumo:num_replicas``."""
    return objects.VolumeType(
        id=str(uuid.uuid4()),
        name="type",
        extra_specs={key.replace("__", ":"): value for key, value in extra_specs.items()},
    )


def volume(size=1, type=None, name_id=None, hosts=(), **more):
    """A volume; ``hosts`` are the connectors of its attachments."""
    volume_id = str(uuid.uuid4())
    values = {
        "id": volume_id,
        "_name_id": name_id,
        "size": size,
        "status": "available",
        "availability_zone": "nova",
        "multiattach": False,
        "provider_location": None,
        "encryption_key_id": None,
        "volume_type_id": type.id if type else None,
        "volume_type": type,
    }
    made = objects.Volume(cinder_context.RequestContext(), **(values | more))
    made.volume_attachment = objects.VolumeAttachmentList(
        objects=[attachment(volume_id, host) for host in hosts]
    )
    return made


def attachment(volume_id, host):
    """An attachment to the host of this connector."""
    return objects.VolumeAttachment(
        id=str(uuid.uuid4()),
        volume_id=volume_id,
        connector=host,
        attach_status=fields.VolumeAttachStatus.ATTACHED,
    )


def snapshot(source):
    """A snapshot of a volume."""
    return objects.Snapshot(
        cinder_context.RequestContext(),
        id=str(uuid.uuid4()),
        volume_id=source.id,
        volume=source,
        volume_size=source.size,
        volume_type_id=source.volume_type_id,
    )


def connector(host):
    """What os-brick's ``get_connector_properties`` gives on a host with nvme-cli."""
    return {
        "host": host,
        "ip": "192.0.2.7",
        "nqn": f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, host)}",
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, host)),
        "nvme_native_multipath": True,
        "multipath": False,
        "platform": "x86_64",
        "os_type": "linux",
        "initiator": "iqn.1993-08.org.debian:01:1",
        "do_local_attach": False,
    }
