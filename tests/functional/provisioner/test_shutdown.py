# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: first say so, then finish what is at work, then end with status 0."""

import signal
import threading
import time

import pytest
import requests

from kumo_client import errors
from tests.functional.provisioner.common import made_volume, record, volume


def get(provisioner, path, session=requests):
    answer = session.get(f"{provisioner.url}{path}", verify=provisioner.ca_file, timeout=5)
    return answer.status_code


def ended(provisioner, seconds=60):
    status = provisioner.process.wait(timeout=seconds)
    provisioner.process = None
    return status


def test_a_request_at_work_is_finished_and_answered(provisioner, fleet):
    node = fleet.add(1)[0]
    provisioner.register(node)
    idle = requests.Session()
    assert get(provisioner, "/healthz", idle) == 200
    held = node.hold("PUT", "^/v1/replicas/[^/]*$")
    results = []
    create = volume()
    work = threading.Thread(target=lambda: results.append(provisioner.client.create_volume(create)))
    work.start()
    held.wait()
    provisioner.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(requests.ConnectionError):
        get(provisioner, "/healthz")
    with pytest.raises(requests.ConnectionError):
        get(provisioner, "/healthz", idle)
    assert provisioner.process.poll() is None
    held.release()
    work.join(10)
    assert len(results) == 1
    assert ended(provisioner) == 0
    assert record(provisioner, "SELECT uuid, status FROM volumes") == [(create.uuid, "available")]


def test_readyz_fails_first_and_everything_else_goes_on(provisioner, fleet):
    provisioner.register(fleet.add(1)[0])
    provisioner.configure({"server": {"shutdown_grace": 2}})
    provisioner.restart()
    assert get(provisioner, "/readyz") == 200
    begun = time.monotonic()
    provisioner.process.send_signal(signal.SIGTERM)
    while get(provisioner, "/readyz") == 200:
        assert time.monotonic() - begun < 1
        time.sleep(0.02)
    assert get(provisioner, "/healthz") == 200
    made_volume(provisioner.new_client())
    assert ended(provisioner) == 0
    assert 1.9 < time.monotonic() - begun < 8


def test_a_second_signal_cuts_the_grace_short(provisioner):
    provisioner.configure({"server": {"shutdown_grace": 20}})
    provisioner.restart()
    begun = time.monotonic()
    provisioner.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    provisioner.process.send_signal(signal.SIGTERM)
    assert ended(provisioner) == 0
    assert time.monotonic() - begun < 10


def test_busy_clients_do_not_hold_it_up(provisioner):
    stop = threading.Event()
    answers = []

    def ask():
        client = provisioner.new_client(budget=1)
        while not stop.is_set():
            try:
                client.volumes()
                answers.append(True)
            except errors.CommunicationError:
                return

    busy = [threading.Thread(target=ask) for _ in range(4)]
    for one in busy:
        one.start()
    while len(answers) < 20:
        time.sleep(0.02)
    begun = time.monotonic()
    provisioner.process.send_signal(signal.SIGTERM)
    try:
        assert ended(provisioner) == 0
        assert time.monotonic() - begun < 8
    finally:
        stop.set()
        for one in busy:
            one.join(10)


def test_who_waits_for_events_is_answered(provisioner):
    session = provisioner.session(read_timeout=40, budget=45)
    last = session.request("GET", "/events", params={"limit": "1000"})["last"]
    pages = []
    asked = {"since": str(last), "wait": "25"}
    waiting = threading.Thread(
        target=lambda: pages.append(session.request("GET", "/events", params=asked))
    )
    waiting.start()
    time.sleep(1)
    begun = time.monotonic()
    provisioner.process.send_signal(signal.SIGTERM)
    assert ended(provisioner) == 0
    waiting.join(10)
    assert time.monotonic() - begun < 10
    assert [one["events"] for one in pages] == [[]]
