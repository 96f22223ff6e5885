# SPDX-License-Identifier: Apache-2.0
"""The real privileged daemon of os-brick, with one thread: no verb holds up another."""

import os

import pytest

# The daemon is forked here, where a service starts it through sudo; it is the same otherwise.
DAEMON = """
import json, os, sys, threading, time
from oslo_config import cfg
from oslo_privsep import priv_context
from os_brick import privileged
from os_brick.privileged import kumo
from os_brick_nvmeof import host
from os_brick_nvmeof.privileged import LocalHost

directory = sys.argv[1]
started = threading.Event()

def slow(path):
    # Answers when somebody writes into the pipe.
    with open(path) as pipe:
        return "done", pipe.read()

def who():
    return "done", [os.getpid(), threading.active_count()]

kumo.VERBS.update(slow=slow, who=who)
kumo.PROGRAMS += ("printenv", "sleep", "false")
cfg.CONF([], project="test")
cfg.CONF.set_override("thread_pool_size", 1, group="privsep_osbrick")
privileged.default.start(priv_context.Method.FORK)
local = LocalHost()

pipes = [f"{directory}/pipe{number}" for number in range(3)]
for pipe in pipes:
    os.mkfifo(pipe)
answers = {}

def ask(pipe):
    answers[pipe] = local._ask(pipe, 30, "slow", pipe)

threads = [threading.Thread(target=ask, args=(pipe,)) for pipe in pipes]
for thread in threads:
    thread.start()
while local._ask("", 30, "who")[1] < 4:
    time.sleep(0.01)
daemon = local._ask("", 30, "who")[0]
output = local.run("printenv", "LC_ALL")
codes = []
for argv in (("sleep", "30"), ("false",)):
    try:
        local.run(*argv, timeout=0.2)
    except host.CommandError as error:
        codes.append(error.returncode)
refused = []
for attempt in (
    lambda: local.write("/etc/motd", "x"),
    lambda: local.read("/dev/nvme99n1", 0, 4096),
    lambda: local.run("sh", "-c", "true"),
):
    try:
        attempt()
    except (OSError, host.CommandError) as error:
        refused.append(type(error).__name__)
for number, pipe in enumerate(pipes):
    with open(pipe, "w") as end:
        end.write(f"answer {number}")
for thread in threads:
    thread.join(30)
print(json.dumps({
    "own process": daemon != os.getpid(),
    "output": output,
    "codes": codes,
    "refused": refused,
    "answers": [answers[pipe] for pipe in pipes],
}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the daemon must be root")
def test_slow_verbs_do_not_hold_up_others(environments, tmp_path):
    found = environments["7.1.1"].ask(DAEMON, str(tmp_path))
    assert found == {
        "own process": True,
        "output": "C\n",
        "codes": [None, 1],
        "refused": ["PermissionError", "FileNotFoundError", "CommandError"],
        "answers": ["answer 0", "answer 1", "answer 2"],
    }
