# SPDX-License-Identifier: Apache-2.0
"""Deadlines, polling, and calls that are left behind: in fake time, and in real threads."""

import itertools
import threading
import time

import pytest

from os_brick_nvmeof import waiting
from tests.fakes.host_kernel import Kernel
from tests.fakes.host_sim import Sim


@pytest.fixture
def ctx(tmp_path):
    return Kernel(tmp_path).context()


class Real:
    """A context with the clock and the threads of this process."""

    clock = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    threads = waiting.Threads()


def test_until_answers_at_once(ctx):
    before = ctx.clock()
    assert waiting.until(ctx, lambda: "yes", waiting.Deadline(ctx.clock, 0)) == "yes"
    assert ctx.clock() == before


def test_until_backs_off_and_looks_once_more(ctx):
    moments = []

    def look():
        moments.append(ctx.clock())

    before = ctx.clock()
    assert waiting.until(ctx, look, waiting.Deadline(ctx.clock, 2)) is None
    pauses = [b - a for a, b in itertools.pairwise(moments)]
    assert pauses[0] == pytest.approx(0.001)
    assert max(pauses) <= 0.0501
    assert moments[-1] - before == pytest.approx(2, abs=0.002)
    assert len(moments) < 60


def test_a_call_gives_what_it_returns_or_raises(ctx):
    call = waiting.Call(ctx, lambda: 3, "three")
    assert call.wait(waiting.Deadline(ctx.clock, 1))
    assert (call.result(), call.error, call.leave()) == (3, None, False)
    call = waiting.Call(ctx, lambda: {}["no"], "broken")
    assert call.wait(waiting.Deadline(ctx.clock, 1))
    assert isinstance(call.error, KeyError)
    with pytest.raises(KeyError):
        call.result()


def test_a_call_that_is_left_hands_its_result_to_another(ctx):
    late = []

    def slow():
        ctx.sleep(5)
        return "result"

    call = waiting.Call(ctx, slow, "slow", late.append)
    assert not call.wait(waiting.Deadline(ctx.clock, 1))
    assert call.leave()
    ctx.host.sim.finish()
    assert late == ["result"]


def test_together_waits_for_all_and_raises_the_first_error(ctx):
    done = []

    def work(number, error=None):
        ctx.sleep(number)
        done.append(number)
        if error:
            raise error
        return number

    assert waiting.together(ctx, [], "none") == []
    works = [lambda n=number: work(n) for number in (3, 1, 2)]
    assert waiting.together(ctx, works, "fine") == [3, 1, 2]
    works = [lambda: work(1), lambda: work(2, KeyError("two")), lambda: work(3, ValueError())]
    done.clear()
    with pytest.raises(KeyError, match="two"):
        waiting.together(ctx, works, "broken")
    assert done == [1, 2, 3]


def test_real_threads():
    """The same in threads of this process."""
    release = threading.Event()
    late = threading.Event()
    call = waiting.Call(Real, lambda: release.wait(5), "real", lambda result: late.set())
    assert not call.wait(waiting.Deadline(Real.clock, 0.001))
    assert call.leave()
    release.set()
    assert late.wait(5)
    assert waiting.together(Real, [lambda: 1, lambda: 2], "real") == [1, 2]


def test_the_fake_notices_that_all_wait():
    sim = Sim()
    with pytest.raises(AssertionError, match="all wait"):
        sim.pause()


def test_a_call_is_awaited_without_end():
    call = waiting.Call(Real, lambda: time.sleep(0.02) or 3, "three")
    assert call.awaited() == 3
    call = waiting.Call(Real, lambda: {}["no"], "broken")
    with pytest.raises(KeyError):
        call.awaited()
