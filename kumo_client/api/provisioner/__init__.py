# SPDX-License-Identifier: Apache-2.0
"""The provisioner API, ours and that of KumoScale, by subject.

Units: sizes in GiB. Every method raises the errors of :meth:`kumo_client.session.Session.request`
besides those that it names. Creates carry the id of what they make, so they are sent again when
their answer was lost; "already exists" is then a success if what exists is what was asked for.
What is an extension of ours is asked only of servers that list it among their capabilities;
:class:`kumo_client.errors.NotAvailableError` names the one that is missing.
"""

from __future__ import annotations

from kumo_client.api.provisioner.backends import Backends
from kumo_client.api.provisioner.base import CAPABILITIES_KEPT_SECONDS
from kumo_client.api.provisioner.events import Events
from kumo_client.api.provisioner.garbage import Garbage
from kumo_client.api.provisioner.hosts import Hosts
from kumo_client.api.provisioner.replicas import Replicas
from kumo_client.api.provisioner.restored import Restored
from kumo_client.api.provisioner.server import Server
from kumo_client.api.provisioner.snapshots import Snapshots
from kumo_client.api.provisioner.tasks import Tasks
from kumo_client.api.provisioner.tenants import Tenants

__all__ = ["CAPABILITIES_KEPT_SECONDS", "Provisioner"]


class Provisioner(
    Server, Backends, Snapshots, Replicas, Hosts, Tasks, Events, Tenants, Garbage, Restored
):
    """Calls to the provisioner."""
