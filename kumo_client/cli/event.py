# SPDX-License-Identifier: Apache-2.0
"""``kumo event``: what happened."""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterator
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, complete, find, output, watch
from kumo_client.cli.output import Column
from kumo_client.schemas.event import FATAL, INFO, WARN, Event, EventPage

COLUMNS = (
    Column("Number", lambda item: item.seq, right=True),
    Column("Time", lambda item: output.when(item.time)),
    Column("Level", lambda item: item.level),
    Column("Type", lambda item: item.type),
    Column("Message", lambda item: item.message),
)
# Longer than this, a proxy in between may take the connection for dead.
WAIT_SECONDS = 20
PAUSE_SECONDS = 2.0
NEWEST = 50
AT_ONCE = 1000


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "event", "Events")
    listing = command.verb(verbs, "list", "List events, or follow them", _list)
    listing.add_argument(
        "--since", type=int, metavar="NUMBER", help="only those after the event of this number"
    )
    listing.add_argument(
        "--limit", type=int, metavar="N", help="how many; 50, with --since all that there are"
    )
    command.argument(listing, "--volume", metavar="UUID_OR_ALIAS", completer=complete.volumes)
    command.argument(listing, "--host", metavar="UUID_OR_NAME", completer=complete.hosts)
    listing.add_argument("--level", choices=(INFO, WARN, FATAL), help="this level and above")
    listing.add_argument("--follow", action="store_true", help="go on with new ones until Ctrl-C")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise command.UsageError("--limit must be above 0")
    filters = {
        "host_id": find.host(provisioner, args.host).uuid if args.host else None,
        "volume_id": _volume_id(provisioner, args.volume) if args.volume else None,
        "level": args.level,
    }
    if args.follow:
        _follow(provisioner, args, filters)
        return
    events, _ = _known(provisioner, args, filters)
    output.show_list(events, COLUMNS, args.format)


def _known(
    provisioner: Provisioner, args: argparse.Namespace, filters: dict[str, Any]
) -> tuple[list[Event], int]:
    """Events that there are already, oldest first, and the number to go on from."""
    if args.since is not None:
        pages = _pages(provisioner, args.since, filters)
        found: list[Event] = []
        for page in pages:
            _tell_loss(page)
            found += page.events
            last = page.last
            if args.limit is not None and len(found) >= args.limit:
                found = found[: args.limit]
                return found, found[-1].seq
        return found, last
    limit = args.limit or NEWEST
    # With a filter it cannot be told how far back the newest ones are.
    filtered = any(value is not None for value in filters.values())
    since = 0 if filtered else max(0, provisioner.last_event() - limit)
    newest: collections.deque[Event] = collections.deque(maxlen=limit)
    for page in _pages(provisioner, since, filters):
        newest.extend(page.events)
        last = page.last
    return list(newest), last


def _pages(provisioner: Provisioner, since: int, filters: dict[str, Any]) -> Iterator[EventPage]:
    """Pages up to one that is not full; at least one."""
    while True:
        page = provisioner.events(since, limit=AT_ONCE, **filters)
        yield page
        if len(page.events) < AT_ONCE:
            return
        since = page.last


def _volume_id(provisioner: Provisioner, text: str) -> str:
    # A deleted volume still has events.
    return text.lower() if find.is_uuid(text) else find.volume(provisioner, text).uuid


def _follow(provisioner: Provisioner, args: argparse.Namespace, filters: dict[str, Any]) -> None:
    """Print what there is and what comes, until Ctrl-C; then say where to go on."""
    since = args.since
    try:
        events, last = _known(provisioner, args, filters)
        while True:
            _print_lines(events, args.format)
            since = last
            page = _next(provisioner, last, filters)
            _tell_loss(page)
            events, last = page.events, page.last
    except KeyboardInterrupt:
        if since is not None:
            output.note(f"go on with --since {since}")


def _print_lines(events: list[Event], output_format: str) -> None:
    for event in events:
        _print_line(event, output_format)
    sys.stdout.flush()


def _next(provisioner: Provisioner, since: int, filters: dict[str, Any]) -> EventPage:
    """The next page, however long it takes; a provisioner that is away is waited for."""
    while True:
        try:
            return provisioner.events(since, wait=WAIT_SECONDS, limit=AT_ONCE, **filters)
        except errors.KumoError as exc:
            if not exc.transient:
                raise
            output.note(str(exc))
        watch.sleep(PAUSE_SECONDS)


def _tell_loss(page: EventPage) -> None:
    if page.lost:
        output.note("events before these have been forgotten")


def _print_line(event: Event, output_format: str) -> None:
    if output_format == "json":
        print(json.dumps(event.wire(), ensure_ascii=False))
        return
    about = " ".join(
        f"{name}={value}"
        for name, value in (
            ("volume", event.volume_id),
            ("replica", event.replica_id),
            ("backend", event.backend_id),
            ("host", event.host_id),
        )
        if value
    )
    text = f"{event.seq} {output.when(event.time)} {event.level} {event.type} {event.message}"
    print(" ".join(output.plain(f"{text} {about}").split()))
