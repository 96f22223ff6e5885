# SPDX-License-Identifier: Apache-2.0
"""The ``kumo`` command.

Exit codes: 0 done, 1 the provisioner answered an error or none, a task failed, or the answer to a
question was not yes, 2 wrong usage or settings and nothing was sent, 130 interrupted. Ctrl-C is how
``--watch`` and ``--follow`` end, so there it is 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import argcomplete
import pydantic
from requests.adapters import BaseAdapter

from kumo_client import config, errors, redact, request_id
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import (
    backend,
    command,
    complete,
    event,
    garbage,
    host,
    output,
    replica,
    restored,
    server,
    snapshot,
    task,
    tenant,
    token,
    volume,
)

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

NOUNS = (
    *(backend, volume, replica, snapshot, host, tenant, task, event, token, garbage),
    *(restored, server),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all nouns and verbs."""
    parser = argparse.ArgumentParser(
        prog="kumo",
        description="Look at and set up the storage behind Kumo volumes.",
        epilog="Settings come from the options, from KUMO_URL, KUMO_TOKEN or KUMO_TOKEN_FILE, "
        "KUMO_CA_FILE and KUMO_TIMEOUT, and from ~/.config/kumo/client.json, in this order.",
    )
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="provisioner, such as https://10.0.0.5:8090; may be repeated or comma-separated",
    )
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM file with the CA of the provisioner")
    parser.add_argument(
        "--timeout", metavar="SECONDS", help="longest time for one call (default 30)"
    )
    parser.add_argument("--config", metavar="FILE", help="settings file in place of the usual one")
    command.argument(
        parser,
        "--tenant",
        metavar="TENANT_ID",
        completer=complete.tenants,
        help="whose volumes and snapshots are meant; otherwise those of the token's tenant",
    )
    parser.add_argument("--debug", action="store_true", help="log every request to stderr")
    parser.add_argument("-f", "--format", choices=output.FORMATS, default="table")
    nouns = parser.add_subparsers(dest="noun", metavar="COMMAND", required=True)
    for module in NOUNS:
        module.register(nouns)
    return parser


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    transport: BaseAdapter | None = None,
) -> int:
    """Run one command and give its exit code.

    :param transport: what carries the requests instead of the network.
    """
    parser = build_parser()
    # Ends the process when the shell asks for completions.
    argcomplete.autocomplete(parser)
    args = parser.parse_args(argv)
    _set_up_logging(args.debug)
    try:
        with request_id.use(None) as rid:
            _run(args, os.environ if environ is None else environ, transport)
            sys.stdout.flush()
    except errors.ConfigError as exc:
        return _fail(USAGE, exc.description)
    except command.UsageError as exc:
        return _fail(USAGE, str(exc))
    except command.DeclinedError as exc:
        return _fail(FAILED, str(exc))
    except pydantic.ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return _fail(USAGE, f"{place}: {first['msg']}")
    except errors.KumoError as exc:
        return _fail(FAILED, f"{exc} (request {exc.request_id or rid})")
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Without this Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    return DONE


def _run(
    args: argparse.Namespace, environ: Mapping[str, str], transport: BaseAdapter | None
) -> None:
    if "offline" in args:
        args.offline(args)
        return
    settings = config.load(vars(args), environ)
    with settings.session(transport=transport) as session:
        args.run(Provisioner(session, tenant=settings.tenant), args)


def _fail(code: int, text: str) -> int:
    print("kumo: error:", " ".join(output.plain(text).split()), file=sys.stderr)
    return code


def _set_up_logging(debug: bool) -> None:
    """Nothing but the errors of the command is shown unless asked for."""
    handler: logging.Handler = logging.StreamHandler() if debug else logging.NullHandler()
    handler.addFilter(redact.RedactingFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("kumo_client")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
