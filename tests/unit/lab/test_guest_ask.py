# SPDX-License-Identifier: Apache-2.0
import io
from types import SimpleNamespace

from lab import guest_ask


class Socket:
    """A connection whose other end answers in parts."""

    def __init__(self, family, kind):
        self.sent, self.path, self.shut = b"", None, False
        self.parts = [b'{"result":', b" 7}\n", b""]
        Socket.made = self

    def connect(self, path):
        self.path = path

    def sendall(self, data):
        self.sent += data

    def shutdown(self, how):
        self.shut = True

    def recv(self, size):
        assert self.shut, "the other end does not know that this is all"
        return self.parts.pop(0)

    def close(self):
        self.path = "closed"


def test_a_line_is_sent_and_all_of_the_answer_printed(monkeypatch):
    out = SimpleNamespace(buffer=io.BytesIO())
    entered = SimpleNamespace(buffer=io.BytesIO(b'{"call": "extend"}\nmore\n'))
    monkeypatch.setattr(guest_ask, "sys", SimpleNamespace(stdin=entered, stdout=out))
    monkeypatch.setattr(guest_ask._socket, "socket", Socket)
    guest_ask.main("/run/kumo-brick-stock.sock")
    assert Socket.made.sent == b'{"call": "extend"}\n'
    assert Socket.made.path == "closed"
    assert out.buffer.getvalue() == b'{"result": 7}\n'
