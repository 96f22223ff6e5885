# SPDX-License-Identifier: Apache-2.0
"""Observe, plan, act, again and again.

Six threads beside the pools that act: the rounds, the questions to the provisioner, the waiting for
its events, what it is told for people, the probes of the nodes, and what is to be done at once
about a node that does not answer. None waits for another, and what the provisioner has to answer to
has a pool of its own. So a provisioner that is away, slow or frozen delays only what it has to
decide, and a node that hangs delays only its own volumes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oslo_log import log

from os_brick_nvmeof import errors
from os_brick_nvmeof.agent import hold, judge, plan, remember, silence, status, voice
from os_brick_nvmeof.agent.actions import (
    Action,
    AddSpare,
    AskReplacement,
    ConfirmRemoval,
    Export,
    FailLeg,
    FinishRestart,
    HoldWrites,
    OfNode,
    ReAdd,
    Reconnect,
    Restart,
    RetireLeg,
)
from os_brick_nvmeof.agent.asking import Asking, safely
from os_brick_nvmeof.agent.hands import ActError, Hands, NotNowError
from os_brick_nvmeof.agent.known import Known
from os_brick_nvmeof.agent.lastwords import LastWords
from os_brick_nvmeof.agent.means import HERE, Means
from os_brick_nvmeof.agent.messages import Messages
from os_brick_nvmeof.agent.metrics import Metrics
from os_brick_nvmeof.agent.model import Limits, Pace, Place, Seen, Wanted
from os_brick_nvmeof.agent.observe import Observer
from os_brick_nvmeof.agent.probes import Probes
from os_brick_nvmeof.agent.round import Round
from os_brick_nvmeof.agent.store import HISTORY, Store
from os_brick_nvmeof.agent.vendor import FATAL, INFO, WARN, Vendor, VendorError
from os_brick_nvmeof.context import Context

LOG = log.getLogger(__name__)

# Seconds in which events of one moment become one look.
SOAK = 0.02
# Seconds for what is under way to come to an end when the agent ends (TimeoutStopSec of its unit).
STOP_SECONDS = 10.0
# What is looked at again before it is said, because it cannot be taken back.
_DOUBTED = (AskReplacement, RetireLeg)
# Told to the provisioner as events, with their level.
_TOLD = {
    "CutNode": FATAL,
    "FailLeg": FATAL,
    "ReAdd": WARN,
    "AddSpare": WARN,
    "AskReplacement": WARN,
    "RemoveLeg": WARN,
}


def _queue(action: Action) -> str:
    """What an action waits for others in.

    A dead portal must not hold up what can be done for its volume, nor a slow provisioner that an
    array goes on without a dead leg or takes one back. But no leg is asked for before it is tried
    to put one back.
    """
    if isinstance(action, Reconnect | FailLeg):
        return action.key
    said = isinstance(action, voice.SAID) and not isinstance(action, _DOUBTED)
    return f"say {action.volume}" if said else action.volume


class Agent:
    """:param ctx: the same that attach and detach use. :param clock: seconds since the epoch.
    :param means: how it does what needs root, beside the verbs of the host of ``ctx``.
    """

    def __init__(
        self,
        ctx: Context,
        vendor: Vendor,
        store: Store,
        limits: Limits,
        pace: Pace | None = None,
        *,
        metrics: Metrics | None = None,
        publish: Callable[[Mapping[str, Any]], None] = lambda _shown: None,
        means: Means = HERE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ctx, self.vendor, self.store = ctx, vendor, store
        self.limits, self.pace = limits, pace or Pace()
        self.metrics = metrics or Metrics()
        self.observer = Observer(ctx)
        self.hands = Hands(ctx, self._still, means.end)
        self.last_words = LastWords(ctx.locks, vendor, clock)
        self.messages = Messages(vendor, clock, store.messages(), store.save_messages)
        self.stopping = threading.Event()
        self.wake = threading.Event()
        self.urgent = threading.Event()
        self.probes = Probes(
            self.pace.ask,
            self.observer.io,
            self.urgent.set,
            count=lambda outcome: self.metrics.probes.labels(outcome).inc(),
        )
        self.known = Known(store)
        self.asking = Asking(
            self.known,
            vendor,
            self.pace,
            self.observer.look,
            messages=self.messages,
            last_words=self.last_words,
            metrics=self.metrics,
            stopping=self.stopping,
            wake=self.wake,
            clock=clock,
        )
        self._publish, self._guard, self._clock = publish, means.guard, clock
        self._busy: set[str] = set()
        # Queues whose work has ended since the last round began.
        self._ended: set[str] = set()
        self._network = ""
        self._left: set[str] = set()

    # -- rounds -----------------------------------------------------------------------------------

    def round(self) -> plan.Plan:
        """Look, plan, show."""
        with self.known.lock:
            wanted, before = self.known.wanted, self.known.memory
            self._ended.clear()
        now = self._clock()
        seen = self.known.seen = self._look(wanted)
        with self.known.lock:
            memory = remember.look(self.known.memory, wanted, seen, now, self.limits)
            self.known.memory = memory
        made = plan.make(wanted, seen, memory, now, self.limits)
        if self.last_words.news():
            self.asking.again.set()
        self._tell_network(made.network)
        self._follow(made.views, now)
        if remember.durable(memory) != remember.durable(before):
            self.known.save_memory("the memory")
        with self.known.lock:
            shown = status.make(wanted, memory, made, now, self.known.last, self.known.history)
        self.metrics.note(shown)
        self.metrics.silent.set(sum(one.unanswered > 1 for one in self.probes.seen().values()))
        self.known.save(lambda: self._publish(shown), "the status")
        return made

    def _look(self, wanted: Wanted, *, reading: bool = True) -> Seen:
        seen = self.observer.look(wanted, reading=reading)
        return dataclasses.replace(seen, probed=self.probes.seen())

    def _tell_network(self, network: str) -> None:
        if network and not self._network:
            LOG.error("Only connections are mended: %s", network)
        elif self._network and not network:
            LOG.info("It is not the network any more: healing goes on")
        self._network = network

    def _follow(self, views: Sequence[judge.View], now: float) -> None:
        if self.limits.silence:
            self.probes.watch(silence.to_watch(views))
        with self.known.lock:
            ended = self.known.history.follow(views, now)
            shown = self.known.history.shown() if ended else []
        if ended:
            self.known.save(lambda: self.store.save(HISTORY, shown), "the history")
        for one in ended:
            took = one.end - one.start
            LOG.info(
                "Leg %s of volume %s is %s after %.1f s (%s, %d bytes written to it)",
                one.leg,
                one.volume,
                "in sync" if one.ok else "lost again",
                took,
                one.kind,
                one.bytes,
            )
            if one.ok:
                self.metrics.healed.labels(one.kind).inc()
                self.metrics.copied.labels(one.kind).inc(one.bytes)
            self._tell(
                INFO if one.ok else FATAL,
                "healed" if one.ok else "lost again",
                one.volume,
                {"leg": one.leg, "seconds": round(took, 3), "bytes": one.bytes, "kind": one.kind},
            )

    def _tell(self, level: str, message: str, volume: str, details: Mapping[str, Any]) -> None:
        self.messages.put(level, f"{message}: volume {volume}", {"volume": volume, **details})

    def _still(self, action: Action) -> bool:
        if isinstance(action, OfNode):
            # The kernel may have noticed the loss of one of several paths meanwhile.
            return action.key in [one.key for one in self._hasty(but=action.node).actions]
        wanted, memory = self.known.now()
        volume = wanted.volume(action.volume)
        only = dataclasses.replace(wanted, volumes=(volume,) if volume else ())
        now = self._clock()
        seen = self._look(only)
        memory = remember.look(memory, only, seen, now, self.limits)
        return plan.still(action, Round(only, seen, memory, now, self.limits))

    # -- nodes that do not answer -----------------------------------------------------------------

    def hasten(self) -> None:
        """Look at what matters to nodes that do not answer, and do what is to be done at once."""
        made = self._hasty()
        notes = {note.text for note in made.notes}
        for text in sorted(notes - self._left):
            LOG.warning("%s", text)
        self._left = notes
        for action in made.actions:
            if not self.stopping.is_set():
                self.perform(action)
                self.wake.set()

    def _hasty(self, *, but: str = "") -> plan.Plan:
        """:param but: a node for which the last cut does not count."""
        wanted, memory = self.known.now()
        now = self._clock()
        seen = self._look(wanted, reading=False)
        memory = remember.look(memory, wanted, seen, now, self.limits)
        cut = {node: time for node, time in memory.cut.items() if node != but}
        memory = dataclasses.replace(memory, cut=cut)
        return plan.hasten(wanted, seen, memory, now, self.limits)

    def _hasten_loop(self) -> None:
        while not self.stopping.is_set():
            self.urgent.wait()
            self.urgent.clear()
            if not self.stopping.is_set():
                safely(self.hasten)

    # -- acting -----------------------------------------------------------------------------------

    def dispatch(
        self,
        made: plan.Plan,
        pool: concurrent.futures.Executor,
        saying: concurrent.futures.Executor,
    ) -> list[concurrent.futures.Future[None]]:
        """Hand the actions to the pools: those of a volume one after the other, but connections,
        legs that fail, and what is said to the provisioner apart.

        What is under way from an earlier round is not begun again, nor what has ended since this
        plan was begun: the plan may not know of it.

        :param saying: for what the provisioner has to answer, which may take its time.
        """
        queues: dict[str, list[Action]] = {}
        for action in made.actions:
            queues.setdefault(_queue(action), []).append(action)
        futures = []
        for name, actions in queues.items():
            with self.known.lock:
                if name in self._busy or name in self._ended:
                    continue
                self._busy.add(name)
            chosen = saying if all(isinstance(one, voice.SAID) for one in actions) else pool
            futures.append(chosen.submit(self._work, name, actions))
        return futures

    def _work(self, name: str, actions: list[Action]) -> None:
        done = False
        try:
            for action in actions:
                if not self.stopping.is_set():
                    done = self.perform(action) or done
        finally:
            with self.known.lock:
                self._busy.discard(name)
                self._ended.add(name)
            if done:
                self.wake.set()

    def perform(self, action: Action) -> bool:
        """Carry one action out, and remember how it went; False when it was not begun."""
        problem, definite, new = "", False, ""
        try:
            new = self._do(action)
        except NotNowError as error:
            LOG.debug("%s: %s", action.key, error)
            with self.known.lock:
                self.known.memory = remember.dropped(self.known.memory, action)
                self.known.history.forget(action)
            return False
        except VendorError as error:
            problem, definite = str(error), error.definite
        except (ActError, errors.KumoBrickError, OSError) as error:
            problem, definite = str(error), True
        except Exception as error:
            LOG.exception("A defect: %s", action.key)
            problem = f"{type(error).__name__}: {error}"
        self._note(action, problem, definite, new)
        return True

    def _do(self, action: Action) -> str:
        """:returns: the leg that came of it, or ""."""
        with self.known.lock:
            volume = self.known.wanted.volume(action.volume)
        if volume is None or (isinstance(action, _DOUBTED) and not self._still(action)):
            raise NotNowError("the situation has changed meanwhile")
        self._intend(action)
        LOG.info("%s: %s", action.key, action.reason, extra={"fields": {"kind": action.kind}})
        if isinstance(action, HoldWrites):
            self._hold(action)
            return ""
        if isinstance(action, ConfirmRemoval):
            self.hands.release(volume, action)
        said = voice.say(self.vendor, volume, action)
        if said is None:
            self._put_down(action)
            if not self.hands.do(volume, action):
                raise ActError(f"nobody can do {action.kind}")
            return ""
        leg = volume.leg(action.leg) if isinstance(action, Export) else None
        if leg is not None:
            self.hands.show(leg)
        self.asking.again.set()
        return said

    def _intend(self, action: Action) -> None:
        """Write down what could be done twice, before it is done."""
        with self.known.lock:
            before = self.known.memory
            self.known.memory = remember.begun(before, action, self._clock())
            new = self.known.memory is not before
        if new and not self.known.save_memory("the intent"):
            raise ActError("the intent cannot be written down")

    def _put_down(self, action: Action) -> None:
        """Begin an entry of the history, before md begins to copy."""
        if not isinstance(action, ReAdd | AddSpare):
            return
        wanted, memory = self.known.now()
        volume = wanted.volume(action.volume)
        if volume is not None:
            seen = self.observer.look(dataclasses.replace(wanted, volumes=(volume,)))
            view = judge.view(volume, seen, memory)
            with self.known.lock:
                self.known.history.began(
                    action, view, memory.lost.get(action.leg, 0.0), self._clock()
                )

    def _hold(self, action: HoldWrites) -> None:
        def good() -> bool:
            wanted, memory = self.known.now()
            volume = wanted.volume(action.volume)
            if volume is None:
                return False
            only = dataclasses.replace(wanted, volumes=(volume,))
            # No device is read: one that hangs would take the time of the hold.
            seen = self.observer.look(only, reading=False)
            view = judge.view(volume, seen, memory)
            legs = {one.uuid for one in view.legs if one.place is Place.IN_SYNC}
            clean = view.array is not None and view.array.state == "clean"
            return clean and action.legs <= legs

        made = hold.Hold(self.ctx, self.vendor, action, self.stopping, self._guard)
        with self.ctx.locks.volume(action.volume):
            made.keep(good)
        made.tell()

    def _note(self, action: Action, problem: str, definite: bool, new: str) -> None:
        now = self._clock()
        with self.known.lock:
            if problem:
                self.known.memory = remember.failed(
                    self.known.memory, action, now, problem, definite=definite
                )
                self.known.history.forget(action)
            else:
                self.known.memory = remember.done(self.known.memory, action, now, new=new)
                self.known.history.placed(action, now)
            self.known.last[action.volume] = {
                "kind": action.kind,
                "about": action.about,
                "reason": action.reason,
                "time": now,
                "error": problem,
            }
        self.metrics.actions.labels(action.kind, "failed" if problem else "done").inc()
        if problem:
            LOG.warning("%s failed: %s", action.key, problem)
        if isinstance(action, AskReplacement | Restart | FinishRestart):
            self.known.save_memory("the memory")
        if action.kind in _TOLD and not problem:
            details = {"leg": action.about, "reason": action.reason}
            self._tell(_TOLD[action.kind], action.kind, action.volume, details)

    # -- threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """End holds that were left behind, ask the provisioner, and begin to listen."""
        seen = self.observer.look(self.known.wanted)
        mine = [judge.find_array(volume, seen) for volume in self.known.wanted.volumes]
        hold.release_all(self.ctx, [array.name for array in mine if array is not None])
        threads = [
            (self.asking.run, "pull"),
            (self.asking.listen, "events"),
            (self.messages.run, "messages"),
        ]
        if self.limits.silence:
            self.hands.prepare()
            threads += [(self._hasten_loop, "hasten"), (self.probes.run, "probes")]
        for work, name in threads:
            threading.Thread(target=work, name=name, daemon=True).start()

    def run(self, alive: Callable[[], None] = lambda: None) -> bool:
        """Rounds until :meth:`stop`. ``alive`` is called in each.

        :returns: False when something hangs that was begun; its thread is left behind.
        """
        pools = self._pool(2, "act"), self._pool(1, "say")
        begun: set[concurrent.futures.Future[None]] = set()
        try:
            while not self.stopping.is_set():
                self.wake.clear()
                made = self.round()
                alive()
                begun = {one for one in begun if not one.done()}
                begun.update(self.dispatch(made, *pools))
                self.wake.wait(self._pause(made))
                self.stopping.wait(SOAK)
        finally:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)
            left = [one for one in begun if not one.cancelled()]
            hanging = concurrent.futures.wait(left, STOP_SECONDS).not_done
            self.known.save_memory("the memory")
            self.messages.keep()
        return not hanging

    def _pool(self, share: int, name: str) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(share * self.pace.parallel, name)

    def _pause(self, made: plan.Plan) -> float:
        """Seconds until the next look.

        The time-out of a node in doubt may be shortened, and nothing tells that it answers again.
        """
        doubt = any(one.unanswered >= silence.DOUBT for one in self.probes.seen().values())
        quiet = not (made.actions or made.waiting or made.notes or doubt)
        return self.pace.look if quiet else self.pace.busy

    def once(self) -> plan.Plan:
        """One question, one round and all that it asks for."""
        self.asking.pull()
        made = self.round()
        with self._pool(1, "act") as pool, self._pool(1, "say") as saying:
            concurrent.futures.wait(self.dispatch(made, pool, saying))
        self.messages.send()
        self.messages.keep()
        return made

    def stop(self) -> None:
        """Begin nothing more; holds end at once."""
        self.stopping.set()
        self.probes.stop()
        self.messages.stop()
        self.urgent.set()
        self.wake.set()
        self.asking.again.set()
