# SPDX-License-Identifier: Apache-2.0
"""The storage nodes as this process calls them: bounded in time, several at once."""

from __future__ import annotations

import contextvars
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from oslo_config import cfg
from oslo_log import log

from kumo_client import errors, transport
from kumo_client.api.node import Node
from kumo_client.session import Session
from kumo_provisioner import metrics
from kumo_provisioner.db import models
from kumo_provisioner.stamps import Stamps

LOG = log.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a node answers."""

    backend_id: str
    ips: tuple[str, ...]
    port: int

    @classmethod
    def of(cls, backend: models.Backend) -> Address:
        return cls(backend.persistent_id, tuple(backend.mgmt_ips), backend.mgmt_port)

    def urls(self) -> list[str]:
        return [f"https://{f'[{ip}]' if ':' in ip else ip}:{self.port}" for ip in self.ips]

    def __str__(self) -> str:
        return self.backend_id or ", ".join(self.urls())


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a call gave: a value, or an error."""

    value: T | None = None
    error: errors.KumoError | None = None

    @property
    def unknown(self) -> bool:
        """Nobody can say whether the node did what it was asked for."""
        return isinstance(self.error, errors.BackendUnavailableError | errors.InternalError)


Call = tuple[Address, Callable[[Node], T]]


def read_token(path: str) -> str:
    """The node token.

    :raises ConfigError: when the file cannot be read or is empty.
    """
    try:
        token = pathlib.Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise errors.ConfigError(f"[nodes] token_file: {exc}") from exc
    if not token:
        raise errors.ConfigError(f"[nodes] token_file: {path} is empty")
    return token


class Nodes:
    """Clients to all nodes, one per address, made when first needed.

    :ivar guard: called before each call; raises when the caller has lost its right to make it.
    :ivar tell: called after each call with its verb, what came of it, and the seconds it took.
    :ivar stamps: which state of which database the calls come from; None for no particular one.
    :ivar doubtful: ids of backends of which nobody knows whether they did what they were asked.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf.nodes
        self._token = read_token(self._conf.token_file)
        ca_file = self._conf.ca_file
        if ca_file and not pathlib.Path(ca_file).is_file():
            raise errors.ConfigError(f"[nodes] ca_file: {ca_file} does not exist")
        self.guard: Callable[[], None] = lambda: None
        self.tell: Callable[[str, str, float], None] = lambda _verb, _result, _seconds: None
        self.stamps: Stamps | None = None
        self.doubtful: set[str] = set()
        self._tls = transport.verifying_context(ca_file)
        self._transports: dict[Address, transport.SharedTls] = {}
        self._clients: dict[tuple[Address, bool], Node] = {}
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(self._conf.parallel, "node-call")
        # Probes do not wait behind calls that hang on a dead node.
        self._probe_pool = ThreadPoolExecutor(self._conf.parallel, "node-probe")

    def client(self, address: Address, *, probing: bool = False) -> Node:
        """The client of a node."""
        with self._guard:
            found = self._clients.get((address, probing))
            if found is None:
                found = metrics.watched(Node(self._session(address, probing)), self._told)
                self._clients[address, probing] = found
            return found

    def _told(self, verb: str, result: str, seconds: float) -> None:
        self.tell(verb, result, seconds)

    def _session(self, address: Address, probing: bool) -> Session:
        budget = self._conf.probe_budget if probing else self._conf.budget
        return Session(
            address.urls(),
            token=self._token,
            ca_file=self._conf.ca_file,
            connect_timeout=min(self._conf.connect_timeout, budget),
            read_timeout=budget,
            budget=budget,
            user_agent="kumo-provisioner",
            headers=self._headers,
            transport=self._transport(address),
        )

    def _headers(self, method: str) -> dict[str, str]:
        return {} if self.stamps is None else self.stamps.headers(method)

    def _transport(self, address: Address) -> transport.SharedTls:
        """The connections to a node; probes and calls share them."""
        found = self._transports.get(address)
        if found is None:
            found = self._transports[address] = transport.SharedTls(
                self._tls, addresses=len(address.ips)
            )
        return found

    def call_all(self, calls: Mapping[K, Call[T]], *, probing: bool = False) -> dict[K, Outcome[T]]:
        """Make all the calls at the same time and wait for all of them."""
        others = list(calls.items())
        if not others:
            return {}
        last, mine = others.pop()
        pool = self._probe_pool if probing else self._pool
        futures: dict[K, Future[Outcome[T]]] = {
            key: pool.submit(contextvars.copy_context().run, self._one, call, probing)
            for key, call in others
        }
        # Handing it to another thread takes longer than many a call.
        made = self._one(mine, probing)
        return {**{key: future.result() for key, future in futures.items()}, last: made}

    def call(self, call: Call[T], *, probing: bool = False) -> Outcome[T]:
        """Make one call."""
        return self._one(call, probing)

    def _one(self, call: Call[Any], probing: bool) -> Outcome[Any]:
        address, function = call
        outcome = self._guarded_call(address, function, probing)
        if outcome.unknown and not probing:
            self.doubtful.add(address.backend_id)
        return outcome

    def _guarded_call(
        self, address: Address, function: Callable[[Node], Any], probing: bool
    ) -> Outcome[Any]:
        try:
            self.guard()
        except errors.BusyError as exc:
            return Outcome(error=exc)
        try:
            return Outcome(value=self._called(function, self.client(address, probing=probing)))
        except errors.KumoError as exc:
            return Outcome(error=translate(exc, address))
        except Exception as exc:
            # The caller has to undo its work also after a defect of ours.
            LOG.exception("Call to node %s failed on an unforeseen error", address)
            return Outcome(
                error=errors.InternalError(f"{type(exc).__name__} at a call to node {address}")
            )

    def _called(self, function: Callable[[Node], Any], node: Node) -> Any:
        try:
            return function(node)
        except errors.OutdatedRecordError:
            # Another instance may have raised the number, and told the node.
            if self.stamps is None or self.stamps.known == self.stamps.load():
                raise
        return function(node)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._probe_pool.shutdown(wait=False, cancel_futures=True)


def translate(exc: errors.KumoError, address: Address) -> errors.KumoError:
    """A node's error as the error of our own answer.

    The node's view of our token or of our request must not reach a client as if it were about the
    client's own.
    """
    node = str(address)
    if isinstance(exc, errors.CommunicationError | errors.BackendUnavailableError):
        return errors.BackendUnavailableError(
            f"storage node {node} could not be asked: {exc.message}", node=node
        )
    if isinstance(exc, errors.UnauthorizedError | errors.ForbiddenError):
        return errors.NotAvailableError(
            f"storage node {node} refuses our token",
            node=node,
            way_out="give the node and the provisioner the same node token",
        )
    if isinstance(
        exc, errors.ProtocolError | errors.MethodNotAllowedError | errors.InvalidInputError
    ):
        return errors.NotAvailableError(
            f"storage node {node} does not understand us: {exc.message}",
            node=node,
            way_out="compare the versions of node and provisioner",
        )
    if isinstance(exc, errors.InternalError | errors.RemoteError | errors.ConfigError):
        failed = errors.BackendUnavailableError(
            f"storage node {node} failed: {exc.message}", node=node, way_out="see the node's log"
        )
        failed.transient = False
        return failed
    exc.node = exc.node or node
    return exc
