# SPDX-License-Identifier: Apache-2.0
"""A process of the agent's that tells of itself and of its daemon, and then waits.

Its arguments are a configuration file and a directory with a file ``secret``, which is root's.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

from os_brick import privileged, utils

import os_brick_nvmeof
from os_brick_nvmeof.agent import conf, main
from os_brick_nvmeof.host import CommandError
from os_brick_nvmeof.props import Portal

# Where a wheel puts it; an environment for development may not have it yet.
privileged.__path__.append(str(pathlib.Path(os_brick_nvmeof.__path__[0], "plugin/privileged")))
config, directory = sys.argv[1:]
SECRET = pathlib.Path(directory, "secret")
SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def status(path="self"):
    lines = pathlib.Path(f"/proc/{path}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def who():
    child = subprocess.run(
        ["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    caps = [status()["CapEff"], child.stdout.split()[1]]
    return "done", [os.getpid(), os.getuid(), caps, SECRET.read_text()]


def hang():
    time.sleep(600)
    return "done", None


def refused(attempt):
    try:
        attempt()
    except (OSError, CommandError) as error:
        return type(error).__name__
    return "allowed"


def enter():
    from os_brick.privileged import kumo

    from os_brick_nvmeof.agent import rooted

    utils.get_host_nqn = lambda *_: "nqn.x"
    utils.get_nvme_host_id = lambda *_: "x"
    kumo.VERBS.update(who=who, hang=hang)
    kumo.PROGRAMS += ("printenv",)
    rooted._MD = re.compile(re.escape(directory) + "/held[12]")
    return main.enter(conf.load([config]))


def tell(ctx, means):
    for _ in range(9):
        threading.Thread(target=ctx.host._ask, args=("", 600, "hang"), daemon=True).start()
    pid, uid, caps, secret = ctx.host._ask("", 30, "who")
    tasks = [status(f"self/task/{one}") for one in os.listdir("/proc/self/task")]
    return {
        "pid": pid,
        "user": means.user,
        "ids": [os.getresuid(), os.getresgid()],
        "caps": sorted({one[name] for one in tasks for name in SETS}),
        "many threads": len(tasks) > 9,
        "no new privileges": sorted({one["NoNewPrivs"] for one in tasks}),
        "daemon": [uid, caps, secret],
        "here": [
            refused(SECRET.read_text),
            refused(lambda: os.setuid(0)),
            refused(lambda: os.kill(pid, signal.SIGKILL)),
        ],
        "there": [
            refused(lambda: ctx.host.write("/etc/motd", "x")),
            refused(lambda: ctx.host.run("sh", "-c", "true")),
            refused(lambda: means.guard("/etc", 1.0)),
        ],
        "run": ctx.host.run("printenv", "LC_ALL"),
        "held": guarded(means),
        "ended": means.end(Portal("192.0.2.1", "4420", "tcp")),
    }


def guarded(means):
    """Two holds, of which one is called off."""
    means.guard(f"{directory}/held2", 50.0)()
    means.guard(f"{directory}/held1", 0.1)
    ends = time.monotonic() + 20
    while time.monotonic() < ends and not os.path.exists(f"{directory}/held1/suspend_lo"):
        time.sleep(0.01)
    return [sorted(os.listdir(f"{directory}/held{number}")) for number in (1, 2)]


def lost():
    print("lost", flush=True)
    os._exit(3)


ctx, means = enter()
print(json.dumps(tell(ctx, means)), flush=True)
means.when_lost(lost)
time.sleep(600)
