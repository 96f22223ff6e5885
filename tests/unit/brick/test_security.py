# SPDX-License-Identifier: Apache-2.0
"""Keys and TLS: what connects, what is refused and why, and that no key gets into a log."""

import base64
import errno
import logging
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from os_brick_nvmeof import errors, fabrics, plain, props, security
from os_brick_nvmeof.conf import TimeOuts
from os_brick_nvmeof.props import Portal
from tests.fakes.host_kernel import Kernel

NQN = "nqn.node1.plain"
PORTAL = Portal("10.0.0.1", "4420", "tcp")
RDMA = Portal("10.0.0.1", "4420", "rdma")
TIMES = TimeOuts(keep_alive=5, reconnect_delay=2, fast_io_fail=-1, ctrl_loss=-1)
LEG = "0b6fe5d1-0000-4000-8000-00000000000a"
VOLUME = "0b6fe5d1-0000-4000-8000-0000000000aa"


def key(secret, kind=0):
    whole = secret + zlib.crc32(secret).to_bytes(4, "little")
    return f"DHHC-1:{kind:02d}:{base64.b64encode(whole).decode()}:"


HOST_KEY, NODE_KEY, OTHER = (key(bytes([n]) * 32) for n in (1, 2, 3))


@pytest.fixture
def kernel(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    made = Kernel(tmp_path)
    made.target(NQN, *((each.transport, each.address, each.port) for each in (PORTAL, RDMA)))
    return made


def connect(kernel, portal=PORTAL, **options):
    return fabrics.connect(kernel.context(**options), NQN, portal, TIMES)


def refused(kernel, caplog, **options):
    """The error; nothing is left, and no log has a key."""
    with pytest.raises(errors.SecurityError) as caught:
        connect(kernel, **options)
    assert kernel.controllers() == []
    everything = f"{caught.value} {caplog.text} {kernel.log}"
    for name in ("dhchap_secret", "dhchap_ctrl_secret"):
        assert not options.get(name) or options[name] not in everything
    assert "tcp://10.0.0.1:4420" in str(caught.value)
    return str(caught.value)


def test_with_both_keys_and_tls(kernel):
    kernel.targets[NQN].keys = (HOST_KEY, NODE_KEY)
    kernel.tls_keys, kernel.tlshd = {NQN}, True
    made = connect(kernel, dhchap_secret=HOST_KEY, dhchap_ctrl_secret=NODE_KEY, tls=True)
    assert made.state == "live"
    text = next(call[1] for call in reversed(kernel.calls) if call[0] == "fabrics")
    assert text.endswith(f",dhchap_secret={HOST_KEY},dhchap_ctrl_secret={NODE_KEY},tls")


def test_rdma_has_keys_and_no_tls(kernel):
    kernel.targets[NQN].keys = (HOST_KEY, NODE_KEY)
    assert connect(kernel, RDMA, dhchap_secret=HOST_KEY, tls=True).transport == "rdma"


def test_a_node_that_does_not_ask_for_the_key(kernel):
    assert connect(kernel, dhchap_secret=HOST_KEY).state == "live"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "asks for a DH-HMAC-CHAP key .* set dhchap_secret"),
        ({"dhchap_ctrl_secret": NODE_KEY}, "asks for a DH-HMAC-CHAP key"),
        ({"dhchap_secret": OTHER}, "a key is wrong .* compare dhchap_secret"),
        ({"dhchap_secret": HOST_KEY, "dhchap_ctrl_secret": OTHER}, "a key is wrong"),
    ],
)
def test_keys_that_are_refused(kernel, caplog, keys, words):
    kernel.targets[NQN].keys = (HOST_KEY, NODE_KEY)
    text = refused(kernel, caplog, **keys)
    assert text.startswith("Security: ")
    assert pytest.raises(ValueError, match=words).matches(ValueError(text))


@pytest.mark.parametrize("name", ["dhchap_secret", "dhchap_ctrl_secret"])
def test_what_is_no_key_never_reaches_the_kernel(kernel, caplog, name):
    """It would write it to its log."""
    text = refused(kernel, caplog, **{name: HOST_KEY.removeprefix("DHHC-1:")})
    assert f"{name} is no DH-HMAC-CHAP key" in text
    assert [call for call in kernel.calls if call[0] == "fabrics"] == []


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("name", ["dhchap_secret", "tls"])
def test_a_kernel_that_does_not_know_it(kernel, caplog, name, tells):
    """It would write an option that it does not know to its log, with the key."""
    kernel.options.remove(name)
    kernel.tells_options = tells
    text = refused(kernel, caplog, **{name: True if name == "tls" else HOST_KEY})
    assert f"kernel cannot do {name}" in text
    assert kernel.log == []
    # Other people's options get there.
    with pytest.raises(OSError, match="Invalid"):
        kernel.fabrics(f"transport=tcp,traddr=10.0.0.1,nqn={NQN},{name}=x")
    assert name in kernel.log[0]


def test_a_kernel_that_takes_keys_and_does_nothing_with_them(kernel, caplog):
    kernel.authenticates = False
    text = refused(kernel, caplog, dhchap_secret=HOST_KEY)
    assert "kernel cannot do dhchap_secret" in text
    # A node that asks for one refuses it.
    kernel.targets[NQN].keys = (HOST_KEY, NODE_KEY)
    with pytest.raises(errors.UnreachableError, match="refuses this host or its keys"):
        connect(kernel, dhchap_secret=HOST_KEY)


def test_the_list_of_options_cannot_be_had(kernel):
    kernel.refusing["fabrics"] = errno.ENOENT
    with pytest.raises(errors.UnreachableError, match="load the module nvme-tcp"):
        connect(kernel, dhchap_secret=HOST_KEY)


def test_tls_without_key_or_helper(kernel, caplog):
    assert "key ring .nvme has no key" in refused(kernel, caplog, tls=True)
    kernel.tls_keys = {NQN}
    assert "tlshd does not run" in refused(kernel, caplog, tls=True)


def test_an_attach_says_so_with_volume_and_leg(kernel):
    kernel.targets[NQN].keys = (HOST_KEY, NODE_KEY)
    portals = (Portal("10.0.0.9", "4420", "tcp"), PORTAL)
    volume = props.Volume(VOLUME, "", "plain", 0, (props.Leg(LEG, NQN, portals, "node1"),), False)
    with pytest.raises(errors.SecurityError) as caught:
        plain.attach(kernel.context(), volume)
    text = str(caught.value)
    for word in (VOLUME, LEG, "node1", "10.0.0.9:4420: ", "set dhchap_secret"):
        assert word in text
    assert kernel.controllers() == []


@given(st.sampled_from([32, 48, 64]), st.integers(0, 3), st.data())
def test_keys_of_every_length_and_no_damaged_ones(length, kind, data):
    good = key(data.draw(st.binary(min_size=length, max_size=length)), kind)
    assert security.is_key(good)
    at = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.sampled_from("AZaz0129+/=:, \n").filter(lambda char: char != good[at]))
    damaged = good[:at] + other + good[at + 1 :]
    # The number of the hash is not in the checksum.
    assert not security.is_key(damaged) or (at == len("DHHC-1:0") and other in "0123")
    assert not security.is_key(good[:at])


@pytest.mark.parametrize("text", ["", "DHHC-1:00::", "DHHC-1:00:AAAAA:", key(b"x" * 31)])
def test_what_is_no_key(text):
    assert not security.is_key(text)
