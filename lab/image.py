# SPDX-License-Identifier: Apache-2.0
"""The virtual machines' disk image: Debian 12 with a kernel that has nvmet, md and LVM thin.

Made once by mmdebstrap from the Debian sources of this machine and kept in the cache under a key
that is a digest of the recipe below. Machines boot the kernel directly, from a small initramfs,
and write to a copy-on-write overlay of the root file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import apt_sources
from lab.errors import LabError
from lab.progress import Progress

KERNELS = {"6.12": "linux-image-6.12-amd64", "6.1": "linux-image-amd64"}
DEFAULT_KERNEL = "6.12"
PACKAGES = """
    cryptsetup-bin dbus e2fsprogs fio initramfs-tools iproute2 iptables kmod lsscsi lvm2 mdadm
    nvme-cli parted procps python3 qemu-guest-agent qemu-utils sg3-utils strace sudo systemd
    systemd-sysv thin-provisioning-tools udev util-linux zstd
""".split()  # noqa: SIM905
# Units that a machine that lives for minutes does not need; each costs seconds without KVM.
MASKED = """
    apt-daily-upgrade.timer apt-daily.timer blk-availability.service dev-hugepages.mount
    dev-mqueue.mount dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty@tty1.service keyboard-setup.service lvm2-monitor.service mdcheck_continue.timer
    mdcheck_start.timer mdmonitor-oneshot.timer mdmonitor.service modprobe@drm.service
    modprobe@fuse.service modprobe@loop.service nvmefc-boot-connections.service
    nvmf-autoconnect.service serial-getty@ttyS0.service sys-fs-fuse-connections.mount
    sys-kernel-debug.mount sys-kernel-tracing.mount systemd-binfmt.service
    systemd-firstboot.service systemd-logind.service systemd-networkd.service
    systemd-pstore.service systemd-random-seed.service systemd-sysusers.service
    systemd-timesyncd.service systemd-update-utmp-runlevel.service systemd-update-utmp.service
    systemd-user-sessions.service
""".split()  # noqa: SIM905
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "ext4")
ROOT_SIZE = "4G"
FILES = {
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/initramfs-tools/modules": "\n".join(INITRAMFS_MODULES) + "\n",
    "etc/initramfs-tools/conf.d/kumo": "MODULES=list\nBUSYBOX=no\nCOMPRESS=zstd\n",
    "etc/systemd/journald.conf.d/kumo.conf": "[Journal]\nStorage=persistent\nRateLimitBurst=0\n",
    "etc/systemd/system/kumo-seed.service": """\
[Unit]
Description=Give this machine its address, identity and files
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
Before=network.target sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/kumo-seed
[Install]
WantedBy=sysinit.target
""",
    "usr/local/sbin/kumo-seed": """\
#!/bin/sh
set -e
seed=/run/kumo-seed
mkdir -p $seed /opt/kumo/src /opt/kumo/site
modprobe -a 9p 9pnet_virtio squashfs virtio_net
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 seed $seed
. $seed/seed.env
ip link set lo up
for try in 1 2 3 4 5 6 7 8 9 10; do [ -e /sys/class/net/eth0 ] && break; sleep 0.3; done
ip address replace "$ADDRESS/24" dev eth0
ip link set eth0 up
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose src /opt/kumo/src
for disk in /sys/block/vd*; do
    if [ "$(cat "$disk/serial")" = site ]; then
        mount -t squashfs -o ro "/dev/${disk##*/}" /opt/kumo/site
    fi
done
mkdir -p /etc/nvme
echo "$HOST_NQN" >/etc/nvme/hostnqn
echo "$HOST_ID" >/etc/nvme/hostid
# os-brick takes the UUID of the root file system for the identity of a host.
if [ "$(blkid -p -s UUID -o value /dev/vda)" != "$HOST_ID" ]; then
    tune2fs -U "$HOST_ID" /dev/vda
fi
cp -r --no-preserve=ownership $seed/files/. /
[ -z "$MODULES" ] || modprobe -a $MODULES
""",
    "usr/local/bin/kumo-python": """\
#!/bin/sh
PYTHONPATH=/opt/kumo/src:/opt/kumo/site exec /usr/bin/python3 "$@"
""",
}
EXECUTABLE = ("usr/local/sbin/kumo-seed", "usr/local/bin/kumo-python")
ENABLED = {"sysinit.target.wants": "kumo-seed.service"}
# To be raised when the steps below change what is in the image.
_REVISION = 2
_APT = Path("/etc/apt")
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Image:
    """Files of a built image; ``root`` is a raw ext4 file system, never written to."""

    kernel: Path
    initrd: Path
    root: Path
    version: str


def cache_directory() -> Path:
    """Where artefacts that may be kept for ever are: ``$KUMO_CACHE`` or ``~/.cache/kumo``."""
    return Path(os.environ.get("KUMO_CACHE") or Path.home() / ".cache" / "kumo")


def key(kernel: str) -> str:
    """Digest of everything that decides what is in the image."""
    recipe = [KERNELS[kernel], PACKAGES, MASKED, FILES, EXECUTABLE, ENABLED, ROOT_SIZE, _REVISION]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def build(kernel: str, progress: Progress) -> Image:
    """Return the image for a kernel of :data:`KERNELS`, making it if the cache has none.

    :raises LabError: a tool failed; the end of its output is in the message.
    """
    directory = cache_directory() / f"image-{kernel}-{key(kernel)}"
    if not directory.exists():
        cache_directory().mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="image-", suffix=".tmp", dir=cache_directory()))
        try:
            _make(kernel, temporary, progress)
            if not directory.exists():  # another command may have been faster
                temporary.rename(directory)
        finally:
            if temporary.exists():
                _remove_tree(temporary)
    return Image(
        kernel=directory / "vmlinuz",
        initrd=directory / "initrd",
        root=directory / "root.ext4",
        version=(directory / "version").read_text().strip(),
    )


def _make(kernel: str, directory: Path, progress: Progress) -> None:
    tree = directory / "tree"
    with progress.task(f"Debian 12 with kernel {kernel}") as task:
        task.update("installing packages (a minute or two)")
        _bootstrap(kernel, tree)
        task.update("configuring")
        _configure(tree)
        _run(["chroot", str(tree), "update-initramfs", "-c", "-k", "all"])
        vmlinuz = next((tree / "boot").glob("vmlinuz-*"))
        shutil.copy(vmlinuz, directory / "vmlinuz")
        shutil.copy(next((tree / "boot").glob("initrd.img-*")), directory / "initrd")
        task.update("making the root file system")
        # metadata_csum_seed lets a running machine change its file system's UUID (tune2fs(8)).
        argv = ["mke2fs", "-q", "-t", "ext4", "-O", "metadata_csum_seed", "-m", "0"]
        _run([*argv, "-d", str(tree), str(directory / "root.ext4"), ROOT_SIZE])
        (directory / "version").write_text(vmlinuz.name.removeprefix("vmlinuz-") + "\n")
        _remove_tree(tree)


def _bootstrap(kernel: str, tree: Path) -> None:
    argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join([KERNELS[kernel], *PACKAGES])}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={line}" for line in _apt_proxy()),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
        "bookworm",
        str(tree),
        "-",
    ]
    # The kernel package would make a large initramfs that is thrown away (its postinst.d script).
    _run(argv, input=apt_sources.debian(_APT), env=os.environ | {"INITRD": "No"})


def _apt_proxy() -> list[str]:
    """Options of this machine's apt that say how to reach the mirror."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"apt-config failed with code {done.returncode}: {done.stderr.strip()}")
    return [line for line in done.stdout.splitlines() if "::Proxy" in line and '""' not in line]


def _configure(tree: Path) -> None:
    for name, text in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name in EXECUTABLE else 0o644)
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for target, unit in ENABLED.items():
        (units / target).mkdir(exist_ok=True)
        (units / target / unit).symlink_to(f"../{unit}")
    (tree / "var/log/journal").mkdir(parents=True, exist_ok=True)
    (tree / "etc/machine-id").write_text("")


def _run(argv: list[str], *, input: str | None = None, env: dict[str, str] | None = None) -> None:
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(input)
    except BaseException:
        # Its children (apt, dpkg) must not go on writing after an interrupt.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        tail = "\n".join(output.splitlines()[-15:])
        raise LabError(f"{argv[0]} failed with code {process.returncode}:\n{tail}")


def _remove_tree(path: Path) -> None:
    """Remove a tree unless something is still mounted below it."""
    mounts = [line.split()[4] for line in _MOUNTS.read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{path}/")), reverse=True):
        _run(["umount", "--lazy", mount])
    shutil.rmtree(path)
