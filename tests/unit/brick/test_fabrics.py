# SPDX-License-Identifier: Apache-2.0
"""Single controllers: connect options, what the kernel answers, time-outs, deletion."""

import errno

import pytest

from os_brick_nvmeof import conf, errors, fabrics, sysfs
from os_brick_nvmeof.props import Portal
from tests.fakes.host_kernel import HOST, HOST_ID, LIVE, SILENT, Kernel

NQN = "nqn.node1.plain"
PORTAL = Portal("10.0.0.1", "4420", "tcp")
SIX = Portal("fd00::1", "4420", "tcp")
RDMA = Portal("10.0.0.1", "4420", "rdma")
PLAIN = conf.TimeOuts(keep_alive=5, reconnect_delay=2, fast_io_fail=-1, ctrl_loss=-1)
REPLICATED = conf.TimeOuts(keep_alive=2, reconnect_delay=1, fast_io_fail=1, ctrl_loss=30)


@pytest.fixture
def kernel(tmp_path):
    made = Kernel(tmp_path)
    made.target(NQN, *((each.transport, each.address, each.port) for each in (PORTAL, SIX, RDMA)))
    return made


def written(kernel):
    return [call[1] for call in kernel.calls if call[0] == "fabrics" and call[1]]


def test_a_connection(kernel):
    made = fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert made == sysfs.Controller("nvme0", NQN, "tcp", "10.0.0.1", "4420", HOST, "live")
    assert written(kernel) == [
        f"transport=tcp,traddr=10.0.0.1,trsvcid=4420,nqn={NQN},hostnqn={HOST},hostid={HOST_ID},"
        "nr_io_queues=4,queue_size=128,keep_alive_tmo=5,reconnect_delay=2,ctrl_loss_tmo=-1"
    ]
    # Again: the one that is there.
    assert fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN) == made
    assert len(written(kernel)) == 1


@pytest.mark.parametrize("portal", [PORTAL, SIX, RDMA], ids=str)
def test_every_kind_of_portal(kernel, portal):
    made = fabrics.connect(kernel.context(), NQN, portal, PLAIN)
    assert (made.transport, made.address) == (portal.transport, portal.address)
    # RDMA is not asked for by TCP.
    assert any(call[0] == "probe" for call in kernel.calls) == (portal.transport == "tcp")


def test_an_address_written_in_another_way_is_the_same(kernel):
    made = fabrics.connect(kernel.context(), NQN, SIX, PLAIN)
    other = Portal("fd00:0:0::0001", "4420", "tcp")
    assert fabrics.connect(kernel.context(), NQN, other, PLAIN) == made


def test_options_of_queues(kernel):
    fabrics.connect(kernel.context(io_queues=0, queue_size=64), NQN, PORTAL, REPLICATED)
    (text,) = written(kernel)
    assert text.endswith(
        "queue_size=64,keep_alive_tmo=2,reconnect_delay=1,ctrl_loss_tmo=30,fast_io_fail_tmo=1"
    )
    assert "nr_io_queues" not in text


def test_a_value_cannot_bring_another_option(kernel):
    with pytest.raises(errors.BadPropertiesError, match="nqn holds a comma"):
        fabrics.connect(kernel.context(), f"{NQN},duplicate_connect", PORTAL, PLAIN)


@pytest.mark.parametrize("tells", [True, False])
def test_a_kernel_without_fast_io_fail(kernel, caplog, tells):
    kernel.options.remove("fast_io_fail_tmo")
    kernel.lacking = {"fast_io_fail_tmo"}
    kernel.tells_options = tells
    assert fabrics.connect(kernel.context(), NQN, PORTAL, REPLICATED).state == "live"
    assert "fast_io_fail_tmo" not in written(kernel)[-1]
    assert "cannot do fast_io_fail_tmo" in caplog.text
    # Nor can it be set later.
    fabrics.connect(kernel.context(), NQN, PORTAL, REPLICATED)


def test_invalid_for_another_reason(kernel):
    kernel.refusing["fabrics"] = errno.EINVAL
    with pytest.raises(errors.UnreachableError, match="Invalid argument"):
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert len(written(kernel)) == 1


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EIO, "refuses this host"),
        (errno.EHOSTUNREACH, "No route to host"),
        (errno.ENOENT, "No such file"),
    ],
)
def test_what_the_kernel_answers(kernel, number, reason):
    kernel.refusing["fabrics"] = number
    with pytest.raises(errors.UnreachableError, match=reason) as caught:
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert "tcp://10.0.0.1:4420" in str(caught.value)


def test_a_silent_portal_never_reaches_the_kernel(kernel):
    kernel.nodes["10.0.0.1"] = SILENT
    with pytest.raises(errors.UnreachableError, match="no answer in time"):
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert written(kernel) == []


def test_somebody_else_connected_just_now(kernel):
    """The kernel says so, and the second look finds it."""
    real = kernel.fabrics

    def race(text):
        kernel.fabrics = real
        real(text)
        raise OSError(errno.EALREADY, "Operation already in progress")

    kernel.fabrics = race
    assert fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN).name == "nvme0"
    assert kernel.nvme.ever == 1


def test_connected_and_not_to_be_found(kernel):
    """A kernel that tells no host NQN in sysfs cannot do this; one that does can."""

    def always(text):
        raise OSError(errno.EEXIST, "File exists")

    kernel.fabrics = always
    with pytest.raises(errors.UnreachableError, match="not by this host NQN"):
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)


@pytest.mark.parametrize("answer", ["", "instance=7,cntlid=1"])
def test_an_answer_without_a_controller(kernel, answer):
    kernel.fabrics = lambda text: answer
    with pytest.raises(errors.UnreachableError, match="lost at once"):
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)


def test_a_new_controller_that_does_not_become_live_is_deleted(kernel):
    real = kernel.nvme.live

    def slow(controller):
        real(controller)
        kernel.nvme.set_state(controller, "connecting")

    kernel.nvme.live = slow
    with pytest.raises(errors.UnreachableError, match="nvme0 is still connecting after 4 s"):
        fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert kernel.controllers() == []


def test_one_that_dies_while_it_is_awaited(kernel):
    ctx = kernel.context()
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    kernel.nvme.set_state(kernel.nvme.controllers[0], "resetting")
    kernel.sim.after(1, lambda: kernel.nvme.drop(kernel.nvme.controllers[0]))
    before = kernel.sim.now
    with pytest.raises(errors.UnreachableError, match="controller nvme0 is gone"):
        fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    assert 1 <= kernel.sim.now - before < 1.1
    fabrics.delete(ctx, made)


def test_one_that_is_being_deleted_does_not_count(kernel):
    ctx = kernel.context()
    fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    kernel.nvme.set_state(kernel.nvme.controllers[0], "deleting")
    assert fabrics.connect(ctx, NQN, PORTAL, PLAIN).name == "nvme1"


def test_a_kernel_that_does_not_tell_host_nqns(kernel):
    kernel.lacking = {"hostnqn"}
    made = fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN)
    assert made.host_nqn == ""
    assert fabrics.connect(kernel.context(), NQN, PORTAL, PLAIN) == made


def test_time_outs_of_a_controller_that_is_there(kernel, caplog):
    ctx = kernel.context()
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    calls = len(kernel.calls)
    fabrics.set_time_outs(ctx, made, PLAIN)
    assert kernel.calls[calls:] == []
    fabrics.set_time_outs(ctx, made, REPLICATED)
    assert [call[1:] for call in kernel.calls[calls:]] == [
        ("/sys/class/nvme-fabrics/ctl/nvme0/reconnect_delay", "1"),
        ("/sys/class/nvme-fabrics/ctl/nvme0/ctrl_loss_tmo", "30"),
        ("/sys/class/nvme-fabrics/ctl/nvme0/fast_io_fail_tmo", "1"),
    ]
    # Kept as a number of tries: 4 of 3 seconds.
    fabrics.set_time_outs(ctx, made, conf.TimeOuts(2, 3, -1, 10))
    assert kernel.attribute("nvme0", "ctrl_loss_tmo") == "12"
    assert kernel.attribute("nvme0", "fast_io_fail_tmo") == "off"
    kernel.refusing["reconnect_delay"] = errno.EPERM
    fabrics.set_time_outs(ctx, made, PLAIN)
    assert "Cannot set reconnect_delay of nvme0" in caplog.text


def test_a_broken_connection_waits_as_it_was_told_before(kernel):
    ctx = kernel.context()
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    assert fabrics.waits(ctx, made)
    kernel.go("10.0.0.1", SILENT)
    kernel.sim.after(1, lambda: kernel.nodes.update({"10.0.0.1": LIVE}))
    broken = fabrics.existing(ctx, NQN, PORTAL)
    fabrics.set_time_outs(ctx, broken, REPLICATED)
    assert fabrics.waits(ctx, broken)
    assert kernel.attribute("nvme0", "reconnect_delay") == "1"
    # Live again, it gets what it has to have.
    fabrics.connect(ctx, NQN, PORTAL, REPLICATED)
    assert not fabrics.waits(ctx, made)


def test_the_number_of_a_controller_can_be_given_to_another(kernel):
    ctx = kernel.context()
    old = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    fabrics.delete(ctx, old)
    new = fabrics.connect(ctx, NQN, SIX, PLAIN)
    assert new.name == old.name
    fabrics.delete(ctx, old)
    fabrics.rescan(ctx, old)
    assert kernel.controllers() == [(NQN, SIX.address)]


def test_delete_is_repeatable(kernel):
    ctx = kernel.context()
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    kernel.refusing["delete_controller"] = errno.ENODEV
    fabrics.delete(ctx, made)
    fabrics.delete(ctx, made)
    fabrics.delete(ctx, made)
    assert kernel.controllers() == []


def test_delete_of_one_that_stays_busy(kernel):
    ctx = kernel.context(stop_timeout=1)
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)

    def busy(path, value):
        raise OSError(errno.EBUSY, "busy")

    kernel.writers.append((r".*/delete_controller", busy))
    before = kernel.sim.now
    with pytest.raises(OSError, match="busy"):
        fabrics.delete(ctx, made)
    assert 1 <= kernel.sim.now - before < 1.2


def test_rescan(kernel):
    ctx = kernel.context()
    kernel.nodes["10.0.0.1"] = LIVE
    target = kernel.targets[NQN]
    target.quiet = True
    made = fabrics.connect(ctx, NQN, PORTAL, PLAIN)
    kernel.sim.sleep(1)
    target.publish("0b6fe5d1-0000-4000-8000-00000000000a")
    kernel.sim.sleep(1)
    assert kernel.devices() == []
    fabrics.rescan(ctx, made)
    kernel.sim.sleep(1)
    assert kernel.devices() == ["nvme0n1"]
