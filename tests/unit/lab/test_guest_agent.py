# SPDX-License-Identifier: Apache-2.0
import socket
import threading

import pytest

from lab import guest_agent
from lab.guest_agent import GuestAgent, GuestAgentError
from tests.fakes.lab_guest import FakeGuest, encode


@pytest.fixture
def guest():
    fake = FakeGuest()
    yield fake
    fake.join()


@pytest.fixture
def agent(guest):
    return GuestAgent("storage1", guest.connect)


def test_each_request_has_a_connection_of_its_own(guest, agent):
    assert agent.call("guest-ping") == {}
    assert agent.ping()
    assert guest.connections == 2


@pytest.mark.parametrize(
    "stale",
    [
        b'{"return": {"pid": 7}}\n',
        b'{"return": 1}\n{"error": {"desc": "late"}}\n',
        b'half of a line "}\n',
        b'{"return": {"exi',
        b"[1, 2]\nnull\n",
        b'\xff{"return": 12}\n',
    ],
)
def test_what_an_earlier_connection_left_is_skipped(guest, agent, stale):
    guest.stale = stale
    guest.program = lambda argv, stdin: (0, "fresh", "")
    assert agent.run(["true"]).stdout == "fresh"


def test_an_error_answer_is_told(guest, agent):
    guest.errors["guest-file-open"] = "Permission denied"
    with pytest.raises(GuestAgentError, match="storage1: guest-file-open: Permission denied"):
        agent.get("/etc/shadow")


def test_no_answer_in_time(guest, agent):
    guest.mute.add("guest-ping")
    with pytest.raises(GuestAgentError, match="does not answer guest-ping"):
        agent.call("guest-ping", timeout=0.1)
    assert not agent.ping(timeout=0.1)
    guest.mute.clear()
    assert agent.ping()


def test_a_stream_of_other_answers_does_not_extend_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(guest_agent.time, "monotonic", lambda: now[0])

    class Chatty:
        def settimeout(self, seconds):
            assert seconds > 0

        def sendall(self, data):
            pass

        def recv(self, size):
            now[0] += 1.0
            return encode({"return": -1})

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

    sock = Chatty()
    with pytest.raises(GuestAgentError, match="no answer in time"):
        GuestAgent("vm", lambda: sock).call("guest-ping", timeout=5)
    assert now[0] == 5.0
    assert sock.closed


def test_the_machine_loses_power_during_a_call(guest, agent):
    guest.hangup.add("guest-ping")
    with pytest.raises(GuestAgentError, match="closed the port"):
        agent.call("guest-ping")


def test_nobody_listens(guest, agent):
    guest.refuse = ConnectionRefusedError("Connection refused")
    with pytest.raises(GuestAgentError, match="does not answer guest-ping: Connection refused"):
        agent.call("guest-ping")


def test_garbage_after_synchronising_is_no_answer(agent, monkeypatch, guest):
    answer = guest.answer
    monkeypatch.setattr(
        guest, "answer", lambda line: b"{]\n" if b"guest-ping" in line else answer(line)
    )
    with pytest.raises(GuestAgentError, match="does not answer guest-ping"):
        agent.call("guest-ping")


class Counted:
    """A connection that notes how many there are at once."""

    def __init__(self, sock, counts):
        self._sock, self._counts = sock, counts
        counts.append(counts[-1] + 1)

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()
        self._counts.append(self._counts[-1] - 1)


def test_requests_of_several_threads_come_one_after_the_other(guest):
    counts = [0]
    agent = GuestAgent("vm", lambda: Counted(guest.connect(), counts))
    guest.program = lambda argv, stdin: (0, argv[-1], "")
    found = {}

    def ask(word):
        found[word] = agent.run(["echo", word]).stdout

    threads = [threading.Thread(target=ask, args=(f"w{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {f"w{n}": f"w{n}" for n in range(6)}
    # QEMU serves one client; another would wait with its own time running.
    assert set(counts) == {0, 1}


def test_run_waits_and_gives_output_code_and_a_clean_environment(guest, agent):
    guest.polls = 2
    guest.program = lambda argv, stdin: (3, f"{argv}:{stdin.decode()}", b"caf\xe9")
    done = agent.run("cat; false", input=b"word", env={"LANG": "C"})
    assert (done.stdout, done.stderr, done.returncode) == ("cat; false:word", "caf\ufffd", 3)
    assert guest.environment["LANG"] == "C"
    assert "/usr/sbin" in guest.environment["PATH"]
    assert len(guest.called("guest-exec-status")) == 3


def test_empty_standard_input_is_given(guest, agent):
    seen = []
    guest.program = lambda argv, stdin: (seen.append(stdin), (0, "", ""))[1]
    agent.run(["cat"], input=b"")
    agent.run(["cat"])
    assert seen == [b"", None]


def test_run_of_a_command_that_a_signal_ends(guest, agent):
    guest.program = lambda argv, stdin: 9
    assert agent.run(["sleep", "9"]).returncode == 137


def test_run_kills_what_does_not_end_in_time(guest, agent):
    guest.program = lambda argv, stdin: None
    with pytest.raises(GuestAgentError, match=r"storage1: not done after 0 s: sleep 9"):
        agent.run(["sleep", "9"], timeout=0.1)
    assert guest.killed == [["-KILL", "1000"]]


@pytest.mark.parametrize("which", ["out-truncated", "err-truncated"])
def test_output_that_the_agent_cut_off_is_no_result(guest, agent, which):
    guest.program = lambda argv, stdin: (0, "the beginning", "")
    guest.extra = {which: True}
    with pytest.raises(GuestAgentError, match="too much output from: journalctl -b"):
        agent.run(["journalctl", "-b"])


def test_put_and_get_in_chunks(guest, agent, monkeypatch):
    monkeypatch.setattr(guest_agent, "_CHUNK", 4)
    agent.put("/tmp/file", b"0123456789")
    assert guest.files == {"/tmp/file": b"0123456789"}
    assert len(guest.called("guest-file-write")) == 3
    assert agent.get("/tmp/file") == b"0123456789"
    assert len(guest.called("guest-file-read")) == 3
    agent.put("/tmp/file", b"")
    assert agent.get("/tmp/file") == b""
    assert guest.open_files == 0


@pytest.mark.parametrize(("verb", "command"), [("put", "write"), ("get", "read")])
def test_a_file_is_closed_after_a_failure(guest, agent, verb, command):
    guest.files["/f"] = b""
    guest.errors[f"guest-file-{command}"] = "No space left on device"
    with pytest.raises(GuestAgentError, match="No space left"):
        agent.put("/f", b"data") if verb == "put" else agent.get("/f")
    assert guest.open_files == 0


def test_connect_unix_leaves_no_socket_open_when_nobody_listens(tmp_path, monkeypatch):
    made = []

    class Refusing(socket.socket):
        def connect(self, path):
            made.append((self, path))
            raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(guest_agent.socket, "socket", Refusing)
    with pytest.raises(FileNotFoundError):
        guest_agent.connect_unix(tmp_path / "agent.sock")
    ((sock, path),) = made
    assert path == str(tmp_path / "agent.sock")
    assert sock.fileno() == -1


def test_connect_unix_gives_the_connected_socket(tmp_path, monkeypatch):
    class Accepting(socket.socket):
        def connect(self, path):
            self.path = path

    monkeypatch.setattr(guest_agent.socket, "socket", Accepting)
    with guest_agent.connect_unix(tmp_path / "qmp.sock") as sock:
        assert sock.path == str(tmp_path / "qmp.sock")
        assert sock.family == socket.AF_UNIX
