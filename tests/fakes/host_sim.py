# SPDX-License-Identifier: Apache-2.0
"""Threads that take turns on a clock that only moves when all of them wait.

One thread runs at a time; who is next among those that can run is drawn from a seed, so that a
test is repeatable and other seeds try other orders. Use :class:`Sim` for threads, events, locks
and time of the code under test; the thread that made it takes part.
"""

import contextlib
import heapq
import itertools
import random
import threading


class Killed(BaseException):
    """The process was killed: nothing of it goes on."""


class _Task:
    def __init__(self, name):
        self.name = name
        self.turn = threading.Semaphore(0)
        self.ready = True
        self.wake = None
        self.doomed = False


class Event:
    """As :class:`threading.Event`."""

    def __init__(self, sim):
        self._sim = sim
        self._set = False
        self._waiting = []

    def set(self):
        self._set = True
        for task in self._waiting:
            task.ready = True

    def is_set(self):
        return self._set

    def wait(self, timeout=None):
        if not self._set:
            task = self._sim.current
            self._waiting.append(task)
            self._sim.pause(timeout)
            self._waiting.remove(task)
        return self._set


class Threads:
    """As :class:`os_brick_nvmeof.waiting.Threads`."""

    def __init__(self, sim):
        self._sim = sim

    def start(self, work, name):
        self._sim.start(work, name)

    def event(self):
        return Event(self._sim)


class Locks:
    """As :class:`os_brick_nvmeof.locks.Locks`; taking one twice in a thread is an error.

    :ivar taken: name -> task.
    """

    def __init__(self, sim, directory):
        self._sim = sim
        self.directory = directory
        self.taken = {}

    def volume(self, uuid):
        return self._hold(f"volume-{uuid}")

    def array(self, uuid):
        return self._hold(f"array-{uuid}")

    def subsystem(self, nqn):
        return self._hold(f"subsystem-{nqn}")

    def connecting(self, nqn):
        return self._hold(f"connecting-{nqn}")

    def connects(self):
        return self._hold("connects")

    @contextlib.contextmanager
    def _hold(self, name):
        me = self._sim.current
        self._sim.step()
        while name in self.taken:
            assert self.taken[name] is not me, f"{name} is taken twice"
            self._sim.sleep(0.001)
        self.taken[name] = me
        try:
            yield
        finally:
            del self.taken[name]


class Sim:
    """Time and threads.

    :ivar now: seconds.
    :ivar dead: the process was killed; its threads get :class:`Killed` as soon as they run.
    """

    def __init__(self, seed=0):
        self.now = 1000.0
        self.dead = False
        self._random = random.Random(seed)
        self.main = self.current = _Task("main")
        self._tasks = [self.main]
        self._timers = []
        self._count = itertools.count()
        self._broken = None

    def clock(self):
        return self.now

    def sleep(self, seconds):
        """Let that much time pass; others go on meanwhile."""
        self.pause(max(seconds, 0))

    def step(self):
        """Let another one go on, if one can."""
        self.current.ready = True
        self._switch()

    def pause(self, seconds=None):
        """Stop until that time has passed, or somebody sets ``ready``."""
        self.current.ready = False
        self.current.wake = None if seconds is None else self.now + seconds
        self._switch()

    def after(self, seconds, work):
        """Call ``work`` after a while, in whichever thread runs then: it must not wait."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._count), work))

    def start(self, work, name):
        """A new thread."""
        task = _Task(name)
        self._tasks.append(task)
        threading.Thread(target=self._run, args=(task, work), name=name, daemon=True).start()

    def finish(self, limit=600.0):
        """Let all other threads come to an end.

        :raises AssertionError: when they have not after ``limit`` seconds of their time.
        """
        end = self.now + limit
        while len(self._tasks) > 1:
            assert self.now < end, f"still running: {[each.name for each in self._tasks[1:]]}"
            self.sleep(0.05)

    def kill(self):
        """The process dies where it stands; called by the thread that notices first."""
        self.dead = True
        for task in self._tasks:
            task.ready = task.doomed = True
        raise Killed

    def bury(self):
        """After :meth:`kill`: end all its threads; the main one is a new process."""
        self.current.doomed = False
        while len(self._tasks) > 1:
            for task in self._tasks:
                task.ready = True
            self._switch()
        self.dead = False

    def check(self):
        """:raises Killed: when this thread's process was killed."""
        if self.current.doomed:
            raise Killed

    def _run(self, task, work):
        task.turn.acquire()
        try:
            self.check()
            work()
        except Killed:
            pass
        except BaseException as error:
            self._broken = self._broken or error
            raise
        finally:
            self._tasks.remove(task)
            self._next().turn.release()

    def _switch(self):
        me = self.current
        following = self._next()
        if following is not me:
            following.turn.release()
            me.turn.acquire()
        if me is self.main and self._broken:
            broken, self._broken = self._broken, None
            raise broken
        self.check()

    def _next(self):
        while True:
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            able = [
                task
                for task in self._tasks
                if task.ready or (task.wake is not None and task.wake <= self.now)
            ]
            if able:
                self.current = self._random.choice(able)
                self.current.ready, self.current.wake = True, None
                return self.current
            moments = [task.wake for task in self._tasks if task.wake is not None]
            moments += [self._timers[0][0]] if self._timers else []
            if not moments:
                self._broken = AssertionError(f"all wait: {[task.name for task in self._tasks]}")
                self.main.ready = True
                continue
            self.now = min(moments)
