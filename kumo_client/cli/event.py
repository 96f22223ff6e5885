# SPDX-License-Identifier: Apache-2.0
"""``kumo event``: what happened."""

from __future__ import annotations

import argparse
import json
import sys
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


def register(subparsers: Any) -> None:
    """Add the verbs."""
    verbs = command.noun(subparsers, "event", "Events")
    listing = command.verb(verbs, "list", "List events, or follow them", _list)
    listing.add_argument(
        "--since", type=int, metavar="NUMBER", help="only those after the event of this number"
    )
    listing.add_argument("--limit", type=int, metavar="N", help="at most so many at once")
    command.argument(listing, "--volume", metavar="UUID_OR_ALIAS", completer=complete.volumes)
    command.argument(listing, "--host", metavar="UUID_OR_NAME", completer=complete.hosts)
    listing.add_argument("--level", choices=(INFO, WARN, FATAL), help="this level and above")
    listing.add_argument("--follow", action="store_true", help="go on with new ones until Ctrl-C")


def _list(provisioner: Provisioner, args: argparse.Namespace) -> None:
    filters = {
        "limit": args.limit,
        "host_id": find.host(provisioner, args.host).uuid if args.host else None,
        "volume_id": _volume_id(provisioner, args.volume) if args.volume else None,
        "level": args.level,
    }
    if args.follow:
        _follow(provisioner, args, filters)
        return
    page = provisioner.events(args.since, **filters)
    _tell_loss(page)
    output.show_list(page.events, COLUMNS, args.format)


def _volume_id(provisioner: Provisioner, text: str) -> str:
    # A deleted volume still has events.
    return text.lower() if find.is_uuid(text) else find.volume(provisioner, text).uuid


def _follow(provisioner: Provisioner, args: argparse.Namespace, filters: dict[str, Any]) -> None:
    since = args.since
    try:
        page = provisioner.events(since, **filters)
        while True:
            _tell_loss(page)
            for event in page.events:
                _print_line(event, args.format)
            sys.stdout.flush()
            since = page.last
            page = _next(provisioner, since, filters)
    except KeyboardInterrupt:
        if since is not None:
            output.note(f"go on with --since {since}")


def _next(provisioner: Provisioner, since: int, filters: dict[str, Any]) -> EventPage:
    """The next page, however long it takes; a provisioner that is away is waited for."""
    while True:
        try:
            return provisioner.events(since, wait=WAIT_SECONDS, **filters)
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
