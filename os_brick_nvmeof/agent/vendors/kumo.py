# SPDX-License-Identifier: Apache-2.0
"""The agent's side of a Kumo provisioner, and of a KumoScale, which has none of our extensions.

A server that lists the capability ``host-volumes`` tells all volumes of a host in one call, and the
subsystems follow from names that both sides compute. Any other is asked for each array that is
here: the volume by the array's uuid or its name, and its targets; a volume is this host's if the
server has a target for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from oslo_config import cfg

from kumo_client import errors, naming
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas import info as capability
from kumo_client.schemas.event import ForwardLog
from kumo_client.schemas.host import ArrayReport, HostProbe, LegReport, PublishRequest
from kumo_client.schemas.task import Task as WireTask
from kumo_client.schemas.task import TaskUpdate
from kumo_client.schemas.tenant import DEFAULT_TENANT
from kumo_client.schemas.volume import Location
from kumo_client.schemas.volume import Volume as WireVolume
from kumo_client.session import Session
from os_brick_nvmeof.agent import vendor
from os_brick_nvmeof.agent.model import CAN_REPORT_ARRAYS, Leg, Seen, Task, Volume, Wanted
from os_brick_nvmeof.agent.vendor import Identity, News, VendorError
from os_brick_nvmeof.props import Portal
from os_brick_nvmeof.stopped import Stopped

# As KumoScale's own agents announce themselves, which decides how it lists targets (one for each
# storage node).
CLIENT_TYPE = "Agent"
APP = "nvmeof_agent"
_LEVELS = (vendor.INFO, vendor.WARN, vendor.FATAL)


def make(conf: cfg.ConfigOpts, identity: Identity) -> KumoVendor:
    """For the entry point.

    :raises VendorError: an option cannot be used.
    """
    options = conf.kumo_agent
    if not options.provisioner_urls:
        raise VendorError("option provisioner_urls is not set", definite=True)

    def token() -> str:
        # Read each time: it may be replaced while the agent runs.
        try:
            return pathlib.Path(options.provisioner_token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"option provisioner_token_file: {error}") from error

    with _translated():
        token()
        session = Session(
            options.provisioner_urls,
            token=token,
            ca_file=options.provisioner_ca_file,
            client_cert=options.provisioner_client_cert,
            connect_timeout=2.0,
            read_timeout=options.provisioner_timeout,
            budget=options.provisioner_timeout,
            user_agent="kumo-agent",
        )
    return KumoVendor(Provisioner(session), identity)


class KumoVendor(vendor.Vendor):
    """:param client: for the default tenant; others are made as they are met."""

    def __init__(self, client: Provisioner, identity: Identity) -> None:
        self.client = client
        self.identity = identity
        self._tenants: dict[str, str] = {}
        self._clients = {DEFAULT_TENANT: client}

    def close(self) -> None:
        self.client.session.close()

    # -- the host ---------------------------------------------------------------------------------

    def probe(self, *, seconds: int, abilities: Sequence[str]) -> None:
        with _translated():
            self.client.probe_host(
                HostProbe(
                    host_nqn=self.identity.nqn,
                    host_id=self.identity.host_id,
                    name=naming.host_name(self.identity.name),
                    client_type=CLIENT_TYPE,
                    version="kumo-agent",
                    duration=seconds,
                    multipath=self.identity.multipath,
                    abilities=list(abilities),
                )
            )

    def pull(self, seen: Seen, now: float) -> Wanted:
        with _translated():
            if self.client.supports(capability.CAPABILITY_HOST_VOLUMES):
                volumes = self._told(now)
            else:
                volumes = self._found(seen, now)
            abilities = set()
            if self.client.supports(capability.CAPABILITY_ARRAY_REPORT):
                abilities.add(CAN_REPORT_ARRAYS)
            return Wanted(
                volumes=volumes,
                tasks=tuple(map(_task, self.client.tasks(host_id=self.identity.host_id))),
                nodes={node.persistent_id: node.state for node in self.client.backends()},
                time=now,
                stale=False,
                abilities=frozenset(abilities),
            )

    def _told(self, now: float) -> tuple[Volume, ...]:
        found = []
        for one in self.client.host_volumes(self.identity.host_id):
            self._tenants[one.uuid] = one.tenant_id

            def nqn(location: Location, one: WireVolume = one) -> str:
                io_class = naming.io_class(one.wanted_replicas)
                node = location.backend.persistent_id
                return naming.subsystem_nqn(node, self.identity.nqn, io_class)

            found.append(self._volume(one, now, nqn))
        return tuple(found)

    def _found(self, seen: Seen, now: float) -> tuple[Volume, ...]:
        found: dict[str, Volume] = {}
        portals: dict[str, tuple[Portal, ...]] = {}
        for array in seen.arrays or ():
            one = self._lookup(array.uuid, array.alias)
            if one is None or one.uuid in found:
                continue
            targets = self.client.targets(host_id=self.identity.host_id, volume_id=one.uuid)
            if not targets:
                continue
            nodes = {target.backend.persistent_id: target.target_name for target in targets}
            # Newer agents of KumoScale are told one NQN for all storage nodes.
            only = targets[0].name if len(targets) == 1 and len(one.location) > 1 else ""

            def nqn(location: Location, nodes: dict[str, str] = nodes, only: str = only) -> str:
                return nodes.get(location.backend.persistent_id, only)

            volume = self._volume(one, now, nqn)
            found[one.uuid] = self._with_portals(volume, portals)
        return tuple(found.values())

    def _lookup(self, uuid: str, alias: str) -> WireVolume | None:
        for ask, key in ((self.client.volume, uuid), (self.client.volume_by_alias, alias)):
            # Names of arrays that are no volumes may not even be identifiers.
            with contextlib.suppress(errors.NotExistsError, errors.InvalidInputError):
                return ask(key)
        return None

    def _with_portals(self, volume: Volume, known: dict[str, tuple[Portal, ...]]) -> Volume:
        """A KumoScale tells the portals of a node with the node alone."""
        legs = []
        for leg in volume.legs:
            if not leg.portals and leg.node:
                if leg.node not in known:
                    known[leg.node] = _portals(self.client.backend(leg.node).portals)
                leg = dataclasses.replace(leg, portals=known[leg.node])
            legs.append(leg)
        return dataclasses.replace(volume, legs=tuple(legs))

    def _volume(self, one: WireVolume, now: float, nqn: Callable[[Location], str]) -> Volume:
        told = {name for location in one.location for name in location.model_fields_set}
        legs = tuple(
            Leg(
                uuid=location.uuid,
                node=location.backend.persistent_id,
                nqn=nqn(location),
                portals=_portals(location.backend.portals),
                state=location.replica_state,
                freshness=location.freshness if "freshness" in told else "",
                events=location.events,
                since=now - location.current_state_time / 1000,
                replaces=location.replaces,
            )
            for location in one.location
        )
        counted = "wanted_replicas" in one.model_fields_set
        return Volume(
            uuid=one.uuid,
            # The array has the alias cut; the whole is what the volume is found by.
            alias=naming.array_name(one.alias),
            legs=legs,
            replicated=len(legs) > 1 or bool(one.array_state),
            replicas=one.wanted_replicas if counted else 0,
            down_time=one.max_replica_down_time * 60.0,
            shared=len(one.published_hosts) > 1,
            array_state=one.array_state,
            size=one.capacity * naming.GIB,
        )

    # -- volumes ----------------------------------------------------------------------------------

    def _of(self, volume: str) -> Provisioner:
        """The client for the tenant of a volume."""
        tenant = self._tenants.get(volume, DEFAULT_TENANT)
        if tenant not in self._clients:
            self._clients[tenant] = Provisioner(self.client.session, tenant=tenant)
        return self._clients[tenant]

    def report_leg(self, volume: Volume, leg: str, state: str) -> None:
        with _translated():
            self._of(volume.uuid).report_replica(volume.uuid, leg, state)

    def report_array(self, volume: Volume, legs: Sequence[tuple[str, str, int]]) -> None:
        report = ArrayReport(
            host_id=self.identity.host_id,
            vol_id=volume.uuid,
            state="open",
            legs=[LegReport(replica=leg, state=state, events=count) for leg, state, count in legs],
        )
        with _translated():
            self._of(volume.uuid).report_array(report)

    def last_word(self, word: Stopped) -> bool:
        with _translated():
            if not self.client.supports(capability.CAPABILITY_LAST_WORD):
                return True
            self._tenants.setdefault(word.volume, word.tenant or DEFAULT_TENANT)
            report = ArrayReport(
                host_id=self.identity.host_id,
                vol_id=word.volume,
                state="clean",
                legs=[
                    LegReport(replica=leg, state=state, events=count)
                    for leg, state, count in word.legs
                ],
                publication=word.publication,
            )
            try:
                self._of(word.volume).report_array(report)
            except errors.BusyError:
                return False
        return True

    def export(self, volume: Volume) -> None:
        request = PublishRequest(host_id=self.identity.host_id, vol_id=volume.uuid)
        with _translated():
            self._of(volume.uuid).publish(request)

    def request_replacement(self, volume: Volume, lost: str) -> str:
        with _translated():
            return self._of(volume.uuid).add_replica(volume.uuid).uuid

    def retire(self, volume: Volume, leg: str) -> None:
        with _translated():
            self._of(volume.uuid).delete_replica(volume.uuid, leg)

    def confirm(self, volume: Volume, leg: Leg) -> None:
        with _translated(), contextlib.suppress(errors.NotExistsError):
            self._of(volume.uuid).confirm_replica(volume.uuid, leg.uuid)

    # -- tasks and events -------------------------------------------------------------------------

    def report_task(self, task: str, *, state: str, status: str, progress: float) -> None:
        update = TaskUpdate(
            task_id=task,
            host_id=self.identity.host_id,
            state=state,
            progress=progress,
            task_status=status or None,
        )
        with _translated():
            self.client.update_task(update)

    def task(self, uuid: str) -> Task | None:
        with _translated():
            try:
                return _task(self.client.task(uuid))
            except errors.NotExistsError:
                return None

    def wait(self, since: int | None, seconds: int) -> News:
        with _translated():
            if since is None:
                return News(self.client.last_event(), look=True)
            page = self.client.events(since, wait=seconds, host_id=self.identity.host_id)
            return News(page.last, look=bool(page.events) or page.lost)

    def tell(self, level: str, message: str, details: Mapping[str, Any]) -> None:
        record = ForwardLog(
            level=level if level in _LEVELS else vendor.INFO,
            host=self.identity.name,
            app_name=APP,
            message=message[:4096],
            parameters_list=dict(details),
        )
        with _translated():
            self.client.forward_log(record)


def _portals(portals: Sequence[Any]) -> tuple[Portal, ...]:
    # As stock os-brick reads transports (Portal in nvmeof.py).
    return tuple(
        Portal(
            one.ip.strip("[]"),
            str(one.port),
            "rdma" if one.transport in ("RoCEv2", "rdma", "RDMA") else "tcp",
        )
        for one in portals
    )


def _task(one: WireTask) -> Task:
    tags = {tag.name: tag.value for tag in one.task_configuration}
    if one.volume_id:
        tags.setdefault("volId", one.volume_id)
    return Task(one.task_id, one.type, one.state, one.task_status, one.progress, tags)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the client as those of the interface."""
    try:
        yield
    except (errors.CommunicationError, errors.ProtocolError, errors.ConfigError) as error:
        raise VendorError(str(error), code=error.code, away=True) from error
    except errors.RemoteError as error:
        raise VendorError(str(error), code=error.remote_code, definite=True) from error
    except errors.KumoError as error:
        # A server that could not ask its node does not know either what came of it.
        definite = not isinstance(error, errors.InternalError) and not error.repeated
        raise VendorError(str(error), code=error.code, definite=definite) from error
