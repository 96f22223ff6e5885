# SPDX-License-Identifier: Apache-2.0
"""An SSD is pulled out of a node in service, and put back."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kumo_client.schemas.backend import BackendPool
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.volume import StorageClass, VolumeCreate
from lab.controlplane import Client, ControlPlane, inventory
from lab.machine import Machine
from lab.scenario import Context, Needs

SUMMARY = "an SSD that is pulled takes only its own replicas along, and brings them back"
NEEDS = Needs(storage=1, compute=1, ssds=2)
MIB = 16
_SECONDS = 180.0
_CONF = "/etc/kumo/node.conf"


@dataclass(frozen=True)
class Attached:
    """A volume on the host: its only leg, and its device there."""

    volume: str
    leg: str

    @property
    def device(self) -> str:
        return f"/dev/disk/by-id/nvme-uuid.{self.leg}"


def run(ctx: Context) -> None:
    """Write to volumes on two SSDs, pull one, restart the daemon, put it back, read."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    node, host = ctx.lab.storage[0], ctx.lab.compute[0]
    client = plane.client()
    try:
        with plane.only(node.name):
            _lose(ctx, client, node, host)
    finally:
        client.close()


def _lose(ctx: Context, client: Client, node: Machine, host: Machine) -> None:
    with ctx.step("a volume on each of two SSDs is attached and written to"):
        made = _one_on_each_pool(ctx, client)
        volumes = {pool: _attach(client, node, host, each) for pool, each in made.items()}
        before = {pool: _write(host, each) for pool, each in volumes.items()}
        lost, kept = volumes
        serial = _serial(ctx, client, node, lost)
    failed = {lost: "failed", kept: "ok"}
    with ctx.step(f"{serial} is pulled: its pool fails, the other goes on"):
        _pull(node, serial)
        _wait(ctx, lambda: _states(client, node) == failed, "one pool failed")
        same = _reads(host, volumes[kept], before[kept])
        ctx.check(same, "the volume on the other SSD reads otherwise")
    with ctx.step("the daemon starts without it"):
        node.run("systemctl restart kumo-node", timeout=180)
        _wait(ctx, lambda: _states(client, node) == failed, "one pool failed")
    with ctx.step("it is put back: pool and export return with what was written"):
        begin = time.monotonic()
        node.run("echo 1 > /sys/bus/pci/rescan")
        _wait(ctx, lambda: set(_states(client, node).values()) == {"ok"}, "all pools in order")
        seconds = time.monotonic() - begin
        for pool, each in volumes.items():
            again = functools.partial(_reads, host, each, before[pool])
            _wait(ctx, again, f"what was written to {pool}")
    ctx.note(f"the pool is in order {seconds:.0f} s after the SSD was back")
    with ctx.step("deleted volumes are erased first, when told so"):
        _set_erasing(node, "zero")
        _delete(client, host, volumes.values())
        _wait(ctx, lambda: not any(inventory(ctx.lab).values()), "nothing left")
        erased = node.run("journalctl -b -u kumo-node --no-pager -o cat | grep -c Erased")
        ctx.check(int(erased.stdout) >= len(volumes), f"erased: {erased.stdout}")
        _set_erasing(node, "off")


def _one_on_each_pool(ctx: Context, client: Client) -> dict[str, str]:
    """Volumes by pool."""
    found: dict[str, str] = {}
    for _ in range(6):
        made = str(uuid.uuid4())
        client.create_volume(
            VolumeCreate(
                uuid=made, alias=f"v-{made}", capacity=1, storage_class=StorageClass(num_replicas=1)
            )
        )
        (pool,) = {each.location[0].pool for each in client.volumes() if each.uuid == made}
        if pool in found:
            client.delete_volume(made)
        found.setdefault(pool, made)
        if len(found) == 2:
            break
    ctx.check(len(found) == 2, f"all volumes went to one pool: {found}")
    return found


def _attach(client: Client, node: Machine, host: Machine, volume: str) -> Attached:
    probe = HostProbe(host_nqn=host.host_nqn, host_id=host.host_id, name=host.name)
    answer = client.publish(PublishRequest(host_id=host.host_id, vol_id=volume, host=probe))
    (leg,) = answer.replicas
    attached = Attached(volume, leg.uuid)
    # The second volume is a further namespace of a subsystem that is connected already.
    host.run(
        f"nvme connect -t tcp -a {node.address} -s 4420 -n {leg.target_nqn} -q {host.host_nqn}"
        f" -I {host.host_id} -l -1; for i in $(seq 60); do [ -e {attached.device} ] && exit 0;"
        " sleep 1; done; exit 1"
    )
    return attached


def _write(host: Machine, attached: Attached) -> str:
    write = f"dd if=/dev/urandom of={attached.device} bs=1M count={MIB} oflag=direct conv=fsync"
    host.run(f"{write} status=none")
    return _digest(host, attached)


def _digest(host: Machine, attached: Attached) -> str:
    """Digest of what was written; "" while it cannot be read."""
    read = f"dd if={attached.device} bs=1M count={MIB} iflag=direct status=none"
    done = host.run(["bash", "-c", f"set -o pipefail; {read} | sha256sum"], check=False)
    return done.stdout if done.returncode == 0 else ""


def _reads(host: Machine, attached: Attached, digest: str) -> bool:
    return _digest(host, attached) == digest


def _pools(client: Client, node: Machine) -> list[BackendPool]:
    (backend,) = (one for one in client.backends() if one.name == node.name)
    return backend.pools


def _states(client: Client, node: Machine) -> dict[str, str]:
    return {pool.name: pool.state for pool in _pools(client, node)}


def _serial(ctx: Context, client: Client, node: Machine, pool: str) -> str:
    """Serial number of the SSD of a pool."""
    (ssd,) = next(each for each in _pools(client, node) if each.name == pool).ssds
    ctx.check(bool(ssd.serial), f"no serial number of {ssd.path}")
    return str(ssd.serial)


def _pull(node: Machine, serial: str) -> None:
    node.run(
        f"for disk in /sys/block/vd*; do grep -qx '{serial}' $disk/serial &&"
        " echo 1 > $disk/device/../remove && exit 0; done; exit 1"
    )


def _set_erasing(node: Machine, how: str) -> None:
    node.run(
        f"sed -i '/^secure_delete/d' {_CONF} && echo 'secure_delete = {how}' >> {_CONF}"
        " && systemctl restart kumo-node",
        timeout=180,
    )


def _delete(client: Client, host: Machine, volumes: Iterable[Attached]) -> None:
    host.run("nvme disconnect-all")
    for each in volumes:
        client.unpublish(UnpublishRequest(host_id=host.host_id, vol_id=each.volume))
        client.delete_volume(each.volume)


def _wait(ctx: Context, seen: Callable[[], bool], what: str) -> None:
    begin = time.monotonic()
    while not seen():
        ctx.check(time.monotonic() - begin < _SECONDS, f"after {_SECONDS:.0f} s not yet: {what}")
        time.sleep(1)
