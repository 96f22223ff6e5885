# SPDX-License-Identifier: Apache-2.0
"""One HTTPS session with the endpoints of one service.

Repeats and failover stay inside a time budget:

* no connection was made: the next endpoint is asked, for every verb;
* the answer was lost: the same, but only for calls that may be sent twice;
* an error answer marked ``transient``: the call is repeated after a pause;
* a certificate that cannot be verified everywhere ends the call at once: waiting does not help.

The endpoint that answered last is asked first next time. No proxy, ``.netrc`` or certificate
setting is taken from the environment: each of them could replace the token or the verification.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import logging
import random
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import requests
import requests.structures
import tenacity
import urllib3.exceptions
from requests.adapters import BaseAdapter, HTTPAdapter

from kumo_client import answer, endpoint, errors, redact, request_id

LOG = logging.getLogger(__name__)

IDEMPOTENT_VERBS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
_LOGGED_CHARACTERS = 4000

_NOT_SENT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    ssl.SSLCertVerificationError,
)


class Session:
    """Requests to the endpoints of one service; may be used by several threads at once.

    :param endpoints: base URLs, ``https://`` only; ``http://`` needs ``allow_http`` and a
        loopback address.
    :param token: bearer token, or what gives the present one; ``None`` sends none.
    :param ca_file: PEM file with the CA of the servers; ``None`` means the system's store.
    :param client_cert: PEM file with a client certificate and its key.
    :param connect_timeout: seconds for one connection.
    :param read_timeout: seconds without a byte from the server.
    :param budget: seconds that a call may take with all repeats.
    :param pool_size: connections kept open to each endpoint.
    :param headers: gives what else is sent with a request of this verb.
    :param transport: what carries the requests instead of the network.
    :raises ConfigError: an endpoint, file or token cannot be used.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        token: str | Callable[[], str] | None,
        ca_file: str | None,
        client_cert: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        budget: float = 120.0,
        user_agent: str = "kumo-client",
        allow_http: bool = False,
        pool_size: int = 16,
        headers: Callable[[str], Mapping[str, str]] | None = None,
        transport: BaseAdapter | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoints = endpoint.endpoints(endpoints, allow_http=allow_http)
        self.budget = budget
        self._more_headers = headers
        self._token = endpoint.check_token(token) if isinstance(token, str) else token
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._clock = clock
        self._sleep = sleep
        self._preferred = self.endpoints[0]
        self._bases: dict[str, str] = {}
        endpoint.check_client_cert(client_cert)
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.verify = endpoint.verify_setting(ca_file)
        self._http.cert = client_cert
        self._http.headers.update({"User-Agent": user_agent, "Accept": "application/json"})
        self._headers = {name: str(value) for name, value in self._http.headers.items()}
        for scheme in ("https://", "http://"):
            self._http.mount(
                scheme,
                transport
                or HTTPAdapter(
                    pool_connections=len(self.endpoints), pool_maxsize=pool_size, max_retries=0
                ),
            )

    def __repr__(self) -> str:
        return f"<Session {' '.join(self.endpoints)}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: dict[str, str] | None = None,
        budget: float | None = None,
        patience: float = 0.0,
        idempotent: bool | None = None,
        accept: Collection[str] = (),
        media: str = answer.JSON,
    ) -> Any:
        """Send a request and give the decoded JSON of the answer.

        :param path: begins with ``/``; its parts are already quoted.
        :param budget: seconds; default is that of the session.
        :param patience: seconds that the server was asked to wait before it answers; they come on
            top of ``read_timeout``.
        :param idempotent: the call may be sent again when its answer was lost; by default so
            for GET, HEAD, PUT and DELETE.
        :param accept: values of ``status`` that are no error besides ``Success``.
        :param media: type of a good answer; anything but JSON is given as text.
        :raises CommunicationError: no endpoint answered inside the budget. ``transient`` is false
            when the request may have been carried out and must not be sent twice.
        :raises ProtocolError: an answer that the API does not allow.
        :raises KumoError: the typed error of an error answer.
        """
        call = _Call(
            session=self,
            method=method.upper(),
            path=path,
            json=json,
            params=params,
            budget=self.budget if budget is None else budget,
            patience=patience,
            idempotent=method.upper() in IDEMPOTENT_VERBS if idempotent is None else idempotent,
            accept=accept,
            media=media,
        )
        current = request_id.current()
        with contextlib.nullcontext(current) if current else request_id.use(None) as rid:
            try:
                return call.run()
            except errors.KumoError as exc:
                exc.request_id = exc.request_id or rid
                raise

    def text(self, path: str) -> str:
        """Ask for a text, such as the metrics of a server.

        :raises ProtocolError: the answer is something else.
        """
        found = self.request("GET", path, media="text/plain")
        if not isinstance(found, str):
            raise errors.ProtocolError(f"the server answered JSON instead of text to {path}")
        return found

    def _exchange(
        self,
        method: str,
        url: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None,
        timeout: tuple[float, float],
    ) -> requests.Response:
        """Send one request to one endpoint.

        What ``requests.Session`` does besides (cookies, redirections, settings of the environment,
        another look at a URL that is put together here) is not wanted, and takes as long as all
        the rest.

        :param target: path and query, quoted.
        """
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = method, self._base(url) + target
        # Their names are all ours, so a plain dict does.
        prepared.headers = self._headers | headers  # type: ignore[assignment]
        if body is not None:
            prepared.headers["Content-Type"] = answer.JSON
        if body is not None or method not in ("GET", "HEAD"):
            prepared.headers["Content-Length"] = str(len(body or b""))
        prepared.body = body
        carrier = self._http.get_adapter(prepared.url)
        response = carrier.send(
            prepared, timeout=timeout, verify=self._http.verify or True, cert=self._http.cert
        )
        # Read here, where an end before its time is told like every other loss.
        _ = response.content
        return response

    def _base(self, url: str) -> str:
        """An endpoint as it stands in a request: another encoding of its name, for example."""
        found = self._bases.get(url)
        if found is None:
            found = (requests.Request("GET", url).prepare().url or url).rstrip("/")
            self._bases[url] = found
        return found

    def _ordered(self) -> list[str]:
        first = self.endpoints.index(self._preferred)
        return [*self.endpoints[first:], *self.endpoints[:first]]

    def _bearer(self) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        return endpoint.check_token(self._token())


class _AgainError(Exception):
    """This round gave no final answer, and another one is allowed."""

    def __init__(self, error: errors.KumoError) -> None:
        super().__init__(str(error))
        self.error = error


class _Call:
    """One call with its repeats."""

    def __init__(
        self,
        *,
        session: Session,
        method: str,
        path: str,
        json: Any,
        params: dict[str, str] | None,
        budget: float,
        patience: float,
        idempotent: bool,
        accept: Collection[str],
        media: str,
    ) -> None:
        self.session = session
        self.method = method
        self.path = path
        self.json = json
        self.params = params
        self.target = f"{path}?{urlencode(params)}" if params else path
        self.body = None if json is None else jsonlib.dumps(json, allow_nan=False).encode()
        self.idempotent = idempotent
        self.accept = accept
        self.media = media
        self.budget = budget
        self.read_timeout = session._read_timeout + patience
        self.deadline = session._clock() + budget
        self.outcome_unknown = False
        self._pause = 0.0
        # The last trouble with each endpoint.
        self._reasons: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        # The last transient error that a server answered: it says more than a later silence.
        self._last_word: errors.KumoError | None = None

    def run(self) -> Any:
        """Rounds over the endpoints until there is an answer or the budget is spent."""
        try:
            return self._round()
        except _AgainError as exc:
            first = exc
        return self._repeated(first)

    def _repeated(self, first: _AgainError) -> Any:
        """:param first: what came of the first round."""
        known = [first]

        def another() -> Any:
            if known:
                raise known.pop()
            return self._round()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_AgainError),
            wait=self._choose_pause,
            stop=self._is_spent,
            sleep=self.session._sleep,
            reraise=True,
        )
        try:
            return retrying(another)
        except _AgainError as exc:
            if self._last_word is not None:
                raise self._last_word from exc.error
            raise exc.error from exc.__cause__

    def _choose_pause(self, state: tenacity.RetryCallState) -> float:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(state.attempt_number - 1, 10))
        self._pause = longest * random.uniform(0.5, 1.0)
        return self._pause

    def _is_spent(self, state: tenacity.RetryCallState) -> bool:
        return self._left() <= self._pause

    def _left(self) -> float:
        return self.deadline - self.session._clock()

    def _round(self) -> Any:
        """Ask each endpoint once, until one answers."""
        hopeless = 0
        tried = 0
        for url in self.session._ordered():
            if tried and self._left() <= 0:
                break
            tried += 1
            try:
                return self._answer_of(url)
            except (requests.RequestException, answer.NoJsonError) as exc:
                if isinstance(exc, answer.NoJsonError) and not exc.transient:
                    raise
                trouble = exc
            # Outside of the handler: oslo.log would add the exception to the line.
            self._tell(url, _reason(trouble))
            hopeless += _is_untrusted(trouble)
            if not _was_not_sent(trouble):
                self._lost(trouble)
        if hopeless == tried:
            error = self._communication_error(transient=False)
            error.way_out = "check the CA file, and the names in the certificate of the server"
            raise error
        raise _AgainError(self._communication_error(transient=True))

    def _tell(self, url: str, reason: str) -> None:
        # A call repeats for minutes: the same trouble is worth one line.
        level = logging.DEBUG if (url, reason) in self._told else logging.WARNING
        self._told.add((url, reason))
        self._reasons[url] = reason
        rid = request_id.current()
        LOG.log(level, "%s %s %s%s got no answer: %s", rid, self.method, url, self.path, reason)

    def _answer_of(self, url: str) -> Any:
        try:
            data = self._send(url)
        except answer.NoJsonError:
            raise
        except errors.KumoError as exc:
            self.session._preferred = url
            exc.repeated = self.outcome_unknown
            if exc.transient:
                # "Nothing is known about the outcome" also when the server says so.
                self.outcome_unknown = True
                self._last_word = exc
                raise _AgainError(exc) from exc
            raise
        self.session._preferred = url
        return data

    def _lost(self, cause: Exception) -> None:
        self.outcome_unknown = True
        if not self.idempotent:
            raise self._communication_error(transient=False) from cause

    def _communication_error(self, *, transient: bool) -> errors.CommunicationError:
        reasons = "; ".join(f"{url}: {reason}" for url, reason in self._reasons.items())
        outcome = "unknown" if self.outcome_unknown else "not sent"
        when = f" within {self.budget:g} s" if transient else f"; outcome: {outcome}"
        error = errors.CommunicationError(
            f"no answer to {self.method} {self.path}{when} ({reasons})",
            details={"outcome": outcome},
        )
        error.transient = transient
        error.repeated = self.outcome_unknown
        return error

    def _send(self, url: str) -> Any:
        session = self.session
        headers = {request_id.HEADER: request_id.current() or ""}
        if session._more_headers is not None:
            headers |= session._more_headers(self.method)
        if self.media != answer.JSON:
            headers["Accept"] = self.media
        secrets: list[str] = []
        if (token := session._bearer()) is not None:
            headers["Authorization"] = f"Bearer {token}"
            secrets.append(token)
        left = max(self._left(), 0.05)
        _log_request(self.method, url + self.path, self.params, self.json, secrets)
        started = session._clock()
        timeout = (min(session._connect_timeout, left), min(self.read_timeout, left))
        response = session._exchange(self.method, url, self.target, headers, self.body, timeout)
        _log_answer(self.method, url + self.path, response, session._clock() - started, secrets)
        if self.media != answer.JSON and answer.is_good(response, self.media):
            return response.text
        return answer.decode(response, secrets, self.accept)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """An exception with all those that it wraps.

    Not with its ``__context__``: that leads on to what the caller is just handling.
    """
    seen: set[int] = set()
    waiting: list[Any] = [exc]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        waiting += [*item.args, getattr(item, "reason", None), item.__cause__]


def _was_not_sent(exc: Exception) -> bool:
    """Whether it is certain that the server saw nothing of the request."""
    return isinstance(exc, requests.ConnectTimeout) or any(
        isinstance(item, _NOT_SENT) for item in _chain(exc)
    )


def _is_untrusted(exc: Exception) -> bool:
    return any(isinstance(item, ssl.SSLCertVerificationError) for item in _chain(exc))


def _reason(exc: Exception) -> str:
    """A few words without addresses of objects in memory."""
    if isinstance(exc, errors.KumoError):
        return exc.message
    for item in _chain(exc):
        if isinstance(item, ssl.SSLCertVerificationError):
            why = getattr(item, "verify_message", "") or item.strerror
            return f"its certificate is not trusted ({why})"
        if isinstance(item, urllib3.exceptions.NameResolutionError):
            return "its name is not known"
    if isinstance(exc, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(exc, requests.Timeout):
        return "no answer in time"
    for item in _chain(exc):
        if isinstance(item, OSError) and item.strerror:
            return item.strerror
    if isinstance(exc, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection was lost"
    return type(exc).__name__


def _shown(value: Any, secrets: list[str]) -> str:
    text = jsonlib.dumps(redact.json_value(value, secrets), sort_keys=True)
    return text if len(text) <= _LOGGED_CHARACTERS else f"{text[:_LOGGED_CHARACTERS]}..."


def _log_request(
    method: str, url: str, params: dict[str, str] | None, body: Any, secrets: list[str]
) -> None:
    if LOG.isEnabledFor(logging.DEBUG):
        asked = _shown({"params": params, "body": body}, secrets)
        LOG.debug("%s %s %s: %s", request_id.current(), method, url, asked)


def _log_answer(
    method: str, url: str, response: requests.Response, seconds: float, secrets: list[str]
) -> None:
    if not LOG.isEnabledFor(logging.DEBUG):
        return
    try:
        shown = _shown(response.json(), secrets)
    except (ValueError, RecursionError):
        shown = f"{len(response.content)} bytes that are not JSON"
    LOG.debug(
        "%s %s %s answered HTTP %d in %.3f s: %s",
        request_id.current(),
        method,
        url,
        response.status_code,
        seconds,
        shown,
    )
