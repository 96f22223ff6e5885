# SPDX-License-Identifier: Apache-2.0
"""The agent's own probes: what counts as an answer, and the sockets themselves."""

import errno
import select
import socket
import struct
import threading

import pytest

from os_brick_nvmeof.agent import cutting, probes
from os_brick_nvmeof.agent.model import Probed
from os_brick_nvmeof.props import Portal
from tests.fakes.agent_net import Net, Now

HERE = Portal("10.0.0.1", "4420", "tcp")
THERE = Portal("10.0.0.2", "4420", "tcp")
NAMES = frozenset({"nvme1"})


class Asking:
    """Probes of two portals on a faked network.

    :ivar io: what is completed and waits; None: it cannot be told.
    """

    def __init__(self):
        self.now = Now()
        self.net = Net(self.now)
        self.io = (NAMES, 0, 0)
        self.urgent, self.ended = [], []
        self.probes = probes.Probes(
            0.5,
            lambda names: self.io,
            lambda: self.urgent.append(self.now()),
            net=self.net,
            count=self.ended.append,
            clock=self.now,
        )
        self.probes.watch({HERE: NAMES, THERE: NAMES})

    def run(self, seconds):
        for _ in range(round(seconds / 0.5)):
            self.probes.tick()
            self.now.pass_by(0.5)
        self.probes.tick()
        return self.probes.seen()


@pytest.fixture
def asking():
    return Asking()


def test_a_node_that_answers_is_never_silent(asking):
    seen = asking.run(20)
    assert [one.unanswered for one in seen.values()] == [1, 1]
    assert asking.urgent == []
    assert set(asking.ended) == {"answered"}
    assert len(asking.net.open) == 2


def test_a_dead_node_is_silent_since_the_first_probe_it_did_not_answer(asking):
    asking.run(2)
    asking.net.delay[THERE] = None
    seen = asking.run(2)
    assert seen[HERE].unanswered == 1
    assert seen[THERE] == Probed(6, 2.0, False)
    assert asking.urgent == []


def test_io_that_waits_is_urgent_and_io_that_ends_is_an_answer(asking):
    asking.run(2)
    asking.net.delay[THERE] = None
    asking.io = (NAMES, 7, 3)
    assert asking.run(2)[THERE].stalled is True
    assert asking.urgent
    asking.io = (NAMES, 8, 3)
    assert asking.run(0)[THERE] == Probed(1, 0.0, None)
    asking.io = None
    assert asking.run(1)[THERE].stalled is None


def test_a_controller_that_the_kernel_has_lost_has_not_answered(asking):
    asking.run(2)
    asking.net.delay[THERE] = None
    asking.io = (NAMES, 7, 3)
    assert asking.run(1.5)[THERE].stalled is True
    asking.io = (frozenset(), 0, 0)
    seen = asking.run(0.5)[THERE]
    assert (seen.silent, seen.stalled) == (2.0, False)


def test_a_late_answer_is_an_answer_on_any_socket(asking):
    asking.net.delay[THERE] = 1.2
    for _ in range(20):
        assert asking.run(0.5)[THERE].silent <= 1.5
    assert len(asking.net.open) < 10


def test_a_refusal_is_an_answer_and_no_neighbour_is_silence(asking):
    asking.net.problem[HERE] = errno.ECONNREFUSED
    asking.net.problem[THERE] = errno.EHOSTUNREACH
    seen = asking.run(2)
    assert (seen[HERE].unanswered, seen[THERE].unanswered) == (1, 5)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_cannot_be_sent_says_nothing(asking, at_once):
    asking.run(2)
    asking.net.problem[THERE] = errno.ENETUNREACH
    asking.net.at_once = at_once
    asking.run(2)
    asking.now.pass_by(0.1)
    asking.probes.hear(0)
    assert THERE not in asking.probes.seen()
    asking.net.problem[THERE] = errno.EHOSTUNREACH
    assert asking.run(2)[THERE].unanswered >= 3
    del asking.net.problem[THERE]
    assert asking.run(1)[THERE].unanswered == 1


def test_sockets_do_not_pile_up_and_a_node_that_is_long_gone_is_asked_seldom(asking):
    asking.net.delay[THERE] = None
    asking.run(9)
    before = asking.net.begun[THERE]
    assert len(asking.net.open) <= 12
    asking.run(30)
    assert asking.net.begun[THERE] - before <= 9
    asking.probes.watch({HERE: NAMES})
    assert set(asking.run(1)) == {HERE}
    assert len(asking.net.open) == 1
    del asking.net.delay[THERE]
    asking.probes.watch({HERE: NAMES, THERE: NAMES})
    assert asking.run(1)[THERE].unanswered == 1


def test_there_is_a_limit_to_the_sockets_of_a_portal():
    now = Now()
    net = Net(now)
    net.delay[HERE] = None
    asked = probes.Probes(0.1, lambda _: None, lambda: None, net=net, clock=now)
    asked.watch({HERE: NAMES})
    for _ in range(40):
        asked.tick()
        now.pass_by(0.1)
    assert len(net.open) == probes.MOST


def test_a_thread_that_stood_still_knows_nothing(asking):
    asking.run(2)
    asking.now.pass_by(10)
    assert asking.probes.seen() == {}


class Stop:
    """The event that ends the thread: after so many turns. Time passes by waiting alone."""

    def __init__(self, now, seconds):
        self.now, self.end, self.waits = now, now() + seconds, []

    def is_set(self):
        return self.now() >= self.end

    def wait(self, seconds):
        self.waits.append(round(seconds, 3))
        self.now.pass_by(max(seconds, 0.001))


def turns(asking, seconds):
    """Run the thread's work for a while; gives how it waited, beside waiting for answers."""
    ready = asking.net.ready

    def wait(longest):
        found = ready(longest)
        if not found:
            asking.now.pass_by(longest)
        return found

    asking.net.ready = wait
    asking.probes._stopped = Stop(asking.now, seconds)
    asking.probes.run()
    asking.net.ready = ready
    return asking.probes._stopped.waits


def test_the_answers_of_portals_that_are_well_are_taken_together(asking):
    assert turns(asking, 1.5) == [probes.GATHER, 0.48] * 3
    assert asking.ended == ["answered"] * 6


def test_what_is_in_doubt_is_heard_at_once(asking):
    asking.net.delay[THERE] = None
    turns(asking, 1.5)
    assert asking.probes.seen()[THERE].unanswered == 3
    # Nothing is gathered any more: each wait is one for an answer.
    assert turns(asking, 1.0) == []


def test_the_thread_survives_a_defect_and_ends_when_it_is_told(caplog):
    ticks = threading.Semaphore(0)
    asked = probes.Probes(0.01, lambda _: None, lambda: None, net=Net(Now()))
    asked.watch({HERE: NAMES})
    real = asked.tick

    def tick():
        ticks.release()
        if len(caplog.records) == 0:
            raise ZeroDivisionError
        real()

    asked.tick = tick
    thread = threading.Thread(target=asked.run)
    thread.start()
    for _ in range(3):
        assert ticks.acquire(timeout=20)
    asked.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert "A defect of the probes" in caplog.text


# -- real sockets, faked one level deeper ---------------------------------------------------------


class Socket:
    """Of :mod:`socket`, as far as it is needed."""

    made = []

    def __init__(self, family, kind):
        self.family, self.kind = family, kind
        self.options, self.closed, self.number = [], False, 100 + len(self.made)
        self.made.append(self)

    def setsockopt(self, *what):
        self.options.append(what)

    def connect_ex(self, where):
        self.where = where
        return errno.EHOSTUNREACH if where[0] == "10.0.0.9" else errno.EINPROGRESS

    def getsockopt(self, _level, _name):
        return errno.ECONNREFUSED

    def fileno(self):
        return self.number

    def close(self):
        self.closed = True


class Poll:
    def __init__(self):
        self.known = []

    def register(self, made, _mask):
        self.known.append(made)

    def unregister(self, made):
        self.known.remove(made)

    def poll(self, _milliseconds):
        return [(made.fileno(), select.POLLOUT) for made in self.known]


def test_sockets_are_begun_and_ended(monkeypatch):
    monkeypatch.setattr(Socket, "made", [])
    monkeypatch.setattr(probes.socket, "socket", Socket)
    monkeypatch.setattr(probes.select, "poll", Poll)
    net = probes.Sockets()
    key = net.begin(Portal("fd00::1", "4420", "tcp"))
    (made,) = Socket.made
    assert (made.family, made.where) == (socket.AF_INET6, ("fd00::1", 4420))
    assert made.options == [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))]
    assert net.ready(0.1) == [(key, errno.ECONNREFUSED)]
    net.end(key)
    assert made.closed
    with pytest.raises(OSError, match="no probe"):
        net.begin(Portal("10.0.0.9", "4420", "tcp"))
    assert Socket.made[-1].closed
    assert net.ready(0) == []


# -- connections that are ended -------------------------------------------------------------------


HEADER = struct.Struct("=IHHII")


def message(kind, body):
    return HEADER.pack(HEADER.size + len(body), kind, 0, 1, 0) + body


def entry(address, port, number, family=socket.AF_INET):
    source = socket.inet_pton(family, "10.0.0.77" if family == socket.AF_INET else "fd00::77")
    return (
        bytes([family, 1, 0, 0])
        + struct.pack("!HH", 40000 + number, port)
        + source.ljust(16, b"\0")
        + socket.inet_pton(family, address).ljust(16, b"\0")
        + struct.pack("=I", 0)
        + struct.pack("=Q", number)
        + bytes(20)
    )


class Link:
    """The kernel's end of a netlink socket.

    :ivar problems: error number for each connection that is to be destroyed, by its cookie.
    """

    def __init__(self, *entries, problem=0):
        self.entries, self.problem = entries, problem
        self.problems, self.destroyed, self.answers = {}, [], []

    def send(self, data):
        length, kind, _flags, _number, _pid = HEADER.unpack_from(data)
        assert length == len(data) == 16 + 56
        if kind == 20:
            found = b"".join(message(20, one) for one in self.entries)
            self.answers.append(found)
            end = message(2, struct.pack("=i", -self.problem)) if self.problem else message(3, b"")
            self.answers.append(end)
        else:
            assert kind == 21
            cookie = struct.unpack_from("=Q", data, len(data) - 8)[0]
            self.destroyed.append(cookie)
            problem = self.problems.get(cookie, 0)
            self.answers.append(message(2, struct.pack("=i", -problem) + bytes(16)))
        return len(data)

    def recv(self, _size):
        return self.answers.pop(0)


def test_the_connections_to_a_portal_are_ended_and_no_others():
    link = Link(
        entry("10.0.0.1", 4420, 1),
        entry("10.0.0.2", 4420, 2),
        entry("10.0.0.1", 4421, 3),
        entry("10.0.0.1", 4420, 4),
        entry("10.0.0.1", 4420, 5),
    )
    link.problems[4] = errno.ENOENT
    assert cutting.cut(HERE, link) == 2
    assert link.destroyed == [1, 4, 5]


def test_the_kernel_is_asked_for_nothing_first():
    link = Link(entry("10.0.0.1", 4420, 1))
    cutting.prepare(link)
    assert (link.destroyed, link.answers) == ([], [])
    with pytest.raises(OSError, match="sock_diag"):
        cutting.prepare(Link(problem=errno.ENOENT))


def test_ipv6_as_well():
    link = Link(entry("fd00::1", 4420, 1, socket.AF_INET6))
    assert cutting.cut(Portal("fd00::1", "4420", "tcp"), link) == 1


def test_a_kernel_that_cannot_is_said():
    link = Link(entry("10.0.0.1", 4420, 1))
    link.problems[1] = errno.EOPNOTSUPP
    with pytest.raises(OSError, match="SOCK_DESTROY") as caught:
        cutting.cut(HERE, link)
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match="sock_diag"):
        cutting.cut(HERE, Link(problem=errno.ENOENT))


def test_nonsense_of_the_kernel_is_an_error():
    link = Link(entry("10.0.0.1", 4420, 1))
    link.send = lambda data, send=link.send: (
        send(data) and link.answers.append(HEADER.pack(3, 2, 0, 0, 0))
    )
    link.answers = []
    real = link.recv

    def recv(size):
        found = real(size)
        return HEADER.pack(3, 2, 0, 0, 0) if link.destroyed else found

    link.recv = recv
    with pytest.raises(OSError) as caught:
        cutting.cut(HERE, link)
    assert caught.value.errno == errno.EPROTO


def test_the_netlink_socket_has_a_time_limit(monkeypatch):
    class Made:
        def __init__(self, *kind):
            self.kind = kind

        def settimeout(self, seconds):
            self.seconds = seconds

    monkeypatch.setattr(cutting.socket, "socket", Made)
    made = cutting.channel()
    assert made.kind[0] == socket.AF_NETLINK
    assert made.seconds == 2.0
