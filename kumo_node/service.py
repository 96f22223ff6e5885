# SPDX-License-Identifier: Apache-2.0
"""A node put together from its configuration, and what it says of itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os

from oslo_config import cfg

from kumo_client.schemas.node import (
    ABILITY_ADOPT,
    ABILITY_COPY,
    ABILITY_LIMITS,
    ABILITY_REVERT,
    Inventory,
    NodeInfo,
)
from kumo_client.schemas.node import Pool as WirePool
from kumo_node.adoption import Adoption
from kumo_node.conf import parse_portals
from kumo_node.context import Context
from kumo_node.copies import Copies
from kumo_node.disks import Disks
from kumo_node.erase import Erasing
from kumo_node.executor import Executor, SubprocessExecutor
from kumo_node.exports import Exports
from kumo_node.following import Following
from kumo_node.health import Health, Pace
from kumo_node.heartbeat import Heartbeats, Receiver
from kumo_node.initiator import Initiator
from kumo_node.kernel import Kernel
from kumo_node.limits import Caps
from kumo_node.locks import Locks
from kumo_node.lvm import Lvm
from kumo_node.nvmet import Configfs, Nvmet
from kumo_node.pool import Limits, Pool
from kumo_node.pools import Naming, Pools
from kumo_node.rates import Rates
from kumo_node.rates import parse as parse_rates
from kumo_node.replicas import Replicas
from kumo_node.restore import Restore
from kumo_node.revert import Revert
from kumo_node.snapshots import Snapshots
from kumo_node.spec import READY, Spec
from kumo_node.throttle import Throttle
from kumo_node.usage import Usage
from kumo_node.verdict import Thresholds


def version() -> str:
    """Version of the installed distribution."""
    try:
        return importlib.metadata.version("cinder-kumo")
    except importlib.metadata.PackageNotFoundError:
        return "0"


class Node:
    """A storage node.

    :param executor: runs commands; the real one when None.
    :param root: directory that stands for ``/``, for tests.
    :param disks: looks at disks; the real one when None.
    :param throttle: keeps caps; the real one when None.
    :param initiator: connects to other nodes; the real one when None.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        *,
        executor: Executor | None = None,
        root: str | os.PathLike[str] = "/",
        configfs: Configfs | None = None,
        disks: Disks | None = None,
        throttle: Throttle | None = None,
        initiator: Initiator | None = None,
    ) -> None:
        self.conf = conf
        self.version = version()
        portals = parse_portals(conf.portals)
        executor = executor or SubprocessExecutor(conf.command_timeout)
        kernel = Kernel(executor, root)
        spec = Spec(conf.state_dir)
        configfs = configfs or Configfs(os.path.join(root, "sys/kernel/config/nvmet"))
        self.disks = disks or Disks(executor)
        self.ctx = Context(
            name=conf.hostname or kernel.hostname(),
            spec=spec,
            pools=_pools(conf, spec, executor, root),
            nvmet=Nvmet(configfs, portals, max_io_queues=conf.max_io_queues),
            kernel=kernel,
            locks=Locks(conf.lock_timeout),
            portals=portals,
            throttle=throttle or _throttle(conf, executor, root),
            erase="" if conf.secure_delete == "off" else conf.secure_delete,
        )
        self._make_verbs(executor)
        self._make_watchers(executor, root)
        self.copies = Copies(
            self.ctx,
            self.replicas,
            initiator or Initiator(kernel, executor, root),
            parallel=conf.copy_parallel,
            rate=conf.copy_rate_mib << 20,
        )
        self.restore.after += [self.caps, self.copies]
        self.restore.before += [self.revert, self.adoption]

    def _make_verbs(self, executor: Executor) -> None:
        """What the API calls, and what finishes it."""
        self.following = Following(self.ctx.spec)
        self.exports = Exports(self.ctx)
        self.replicas = Replicas(self.ctx, self.exports)
        self.snapshots = Snapshots(self.ctx)
        self.caps = Caps(self.ctx, self.replicas)
        self.revert = Revert(self.ctx, self.replicas)
        self.adoption = Adoption(self.ctx, self.replicas)
        self.restore = Restore(
            self.ctx,
            self.replicas,
            self.snapshots,
            self.exports,
            interval=self.conf.restore_interval,
        )
        self.erasing = Erasing(self.ctx, self.replicas, self.snapshots, executor)

    def _make_watchers(self, executor: Executor, root: str | os.PathLike[str]) -> None:
        """What looks at disks and pools, and tells the provisioner."""
        conf = self.conf
        self.health = Health(
            self.ctx,
            self.exports,
            self.disks,
            executor,
            Thresholds(
                warn=conf.pool_warn_percent,
                full=conf.pool_full_percent,
                critical=conf.pool_critical_percent,
                wear=conf.wear_warn_percent,
            ),
            Pace(conf.pool_interval, conf.smart_interval),
        )
        self.usage = Usage(
            self.ctx.pools,
            os.path.join(root, "sys"),
            window=conf.usage_window,
            interval=conf.usage_interval,
        )
        self.rates = Rates(
            parse_rates("disk_iops", conf.disk_iops), parse_rates("disk_bw", conf.disk_bw)
        )
        self.heartbeats: Heartbeats | None = None
        self.can_copy = False

    def prepare(self) -> list[str]:
        """All that must be done before the API is served.

        :returns: what could not be restored yet; the loop goes on trying.
        :raises KumoError: the node cannot serve at all.
        """
        self.ctx.kernel.load(self.ctx.portals)
        self.ctx.throttle.prepare()
        self.can_copy = self.copies.initiator.possible()
        self.ctx.kernel.hide_volumes(self.ctx.pools.naming.pattern())
        self.ctx.pools.prepare(self.disks, self.conf.disks, self.conf.wipe_disks)
        self.health.round()
        problems = [*self.ctx.pools.problems, *self.restore.round()]
        self.restore.strangers.look()
        return problems

    def start(self) -> None:
        """Begin to watch and to restore; :meth:`prepare` went before."""
        self.restore.start()
        self.health.start()
        self.usage.start()
        self.erasing.start()

    def tell(self, provisioner: Receiver) -> None:
        """Begin to send heartbeats."""
        self.heartbeats = Heartbeats(provisioner, self.info, interval=self.conf.heartbeat_interval)
        self.health.observers.append(self.heartbeats.hurry)
        self.heartbeats.start()

    def problems(self) -> list[str]:
        """What is wrong with this node, one sentence each."""
        found = [*self.health.problems(), *self.ctx.pools.problems]
        found += [*self.restore.problems(), *self.erasing.problems()]
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Stop the loop and let another process have the record."""
        if self.heartbeats is not None:
            self.heartbeats.stop()
        self.usage.stop()
        self.erasing.stop()
        self.copies.stop()
        self.health.stop()
        self.restore.stop()
        self.ctx.spec.close()

    def info(self) -> NodeInfo:
        """GET /v1/info."""
        pools = [self._pool(pool) for pool in self.ctx.pools.values()]
        return NodeInfo(
            persistent_id=self.ctx.persistent_id,
            name=self.ctx.name,
            version=self.version,
            boot_id=self.ctx.kernel.boot_id(),
            kernel=self.ctx.kernel.release(),
            portals=[portal.wire() for portal in self.ctx.portals],
            pools=[pool for pool in pools if pool is not None],
            problems=self.problems(),
            generation=self.ctx.spec.data.generation,
            abilities=self.abilities(),
            stamp=self.following.wire(),
        )

    def _pool(self, pool: Pool) -> WirePool | None:
        wire = pool.wire()
        if wire is None:
            return None
        use = self.usage.of(pool.name)
        max_iops, max_bw = self.rates.of(pool, self.ctx.spec.data)
        return wire.model_copy(
            update={
                "ssds": self.health.ssds(pool),
                "max_iops": max_iops,
                "max_bw": max_bw,
                **dataclasses.asdict(use),
            }
        )

    def abilities(self) -> list[str]:
        """What this node can do beyond what every node can."""
        found = [ABILITY_REVERT, ABILITY_ADOPT]
        if self.ctx.throttle.works:
            found.append(ABILITY_LIMITS)
        if self.can_copy:
            found.append(ABILITY_COPY)
        return found

    def inventory(self) -> Inventory:
        """GET /v1/inventory: what was answered as done; nothing that is being made or removed."""
        data = self.ctx.spec.data
        return Inventory(
            persistent_id=self.ctx.persistent_id,
            boot_id=self.ctx.kernel.boot_id(),
            generation=data.generation,
            stamp=self.following.wire(),
            replicas=[
                self.replicas.view(uuid, record)
                for uuid, record in data.replicas.items()
                if record.state == READY
            ],
            snapshots=[
                self.snapshots.view(uuid, record)
                for uuid, record in data.snapshots.items()
                if record.state == READY
            ],
        )


def _throttle(conf: cfg.ConfigOpts, executor: Executor, root: str | os.PathLike[str]) -> Throttle:
    return Throttle(
        executor,
        root,
        mode=conf.throttle,
        least_iops=conf.throttle_min_iops,
        least_bw=conf.throttle_min_bw,
    )


def _pools(
    conf: cfg.ConfigOpts, spec: Spec, executor: Executor, root: str | os.PathLike[str]
) -> Pools:
    def lvm(vg: str) -> Lvm:
        return Lvm(
            executor,
            vg=vg,
            pool=conf.pool,
            dev_root=os.path.join(root, "dev"),
            sys_root=os.path.join(root, "sys"),
        )

    limits = Limits(
        chunk_kib=conf.pool_chunk_kib,
        max_overprovision=conf.max_overprovision,
        full_percent=conf.pool_full_percent,
        reserve_percent=conf.pool_reserve_percent,
    )
    naming = Naming(conf.volume_group, conf.pool)
    return Pools(spec, lvm, naming, limits, layout=conf.pool_layout)
