# SPDX-License-Identifier: Apache-2.0
"""``kumo-provisioner``: run the service, or prepare for it."""

from __future__ import annotations

import argparse
import json
import pathlib
import ssl
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from oslo_config import cfg
from oslo_log import log

from kumo_client import errors
from kumo_provisioner import app, auth, conf, init, logs, nodes, server, stamps, token_commands
from kumo_provisioner.core import Core
from kumo_provisioner.db.engine import Database
from kumo_provisioner.services import restored, watch

LOG = log.getLogger(__name__)
# Longer than clients keep an idle connection, so that it is never ours that closes under them.
KEEP_ALIVE_SECONDS = 75


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kumo-provisioner", description=__doc__)
    _add_config_file(parser, [])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="serve the API (the default)")
    _add_config_file(run, argparse.SUPPRESS)
    init.add_arguments(
        commands.add_parser("init", help="make certificates, tokens and configuration files")
    )
    database = commands.add_parser("db", help="work on the database")
    database.add_argument(
        "action",
        choices=["upgrade", "restored"],
        help="upgrade: bring the schema up to date; restored: say that an old copy was put in "
        "place, so that nothing is taken away from nodes until it is accepted",
    )
    _add_config_file(database, argparse.SUPPRESS)
    token = commands.add_parser("token", help="make tokens, and rotate the keys that sign them")
    for verb in token_commands.add_arguments(token):
        _add_config_file(verb, argparse.SUPPRESS)
    commands.add_parser("openapi", help="print the OpenAPI document")
    return parser


def _add_config_file(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--config-file",
        action="append",
        default=default,
        metavar="FILE",
        help=f"configuration file (default {conf.DEFAULT_FILE}); may be given several times",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``kumo-provisioner``."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "init":
            init.run(arguments)
        elif arguments.command == "openapi":
            print(json.dumps(app.describe().openapi(), indent=2, sort_keys=True))
        elif arguments.command == "token":
            token_commands.run(arguments, conf.load(arguments.config_file))
        elif arguments.command == "db":
            _DATABASE[arguments.action](conf.load(arguments.config_file))
        else:
            _serve(conf.load(arguments.config_file))
    except errors.ConfigError as exc:
        print(f"kumo-provisioner: {exc.description}", file=sys.stderr)
        return 1
    return 0


def _upgrade(options: cfg.ConfigOpts) -> None:
    logs.setup(options)
    database = Database(options.database.connection)
    database.upgrade()
    database.close()


def _restored(options: cfg.ConfigOpts) -> None:
    """Write down that the database is an old copy.

    :raises ConfigError: when it cannot be used, is of another version, or is in use.
    """
    logs.setup(options)
    database = Database(options.database.connection)
    try:
        database.claim()
        database.check_schema()
        reason = "an operator has put an old copy of the database in place"
        database.run(lambda session: restored.doubted(session, stamps.OLDER, reason))
    except errors.KumoError as exc:
        raise errors.ConfigError(exc.message, way_out=exc.way_out) from exc
    finally:
        database.close()
    print("Nothing is taken away from storage nodes until 'kumo restored accept'.")


_DATABASE = {"upgrade": _upgrade, "restored": _restored}


def _serve(options: cfg.ConfigOpts) -> None:
    logs.setup(options, secrets=[nodes.read_token(options.nodes.token_file)])
    tokens = auth.Tokens.load(
        options.server.token_file,
        options.server.jwt_key_file,
        leeway=options.server.token_leeway,
    )
    client_certificates = _client_certificates(options)
    certificate, key = _check_tls(options)
    core = Core.make(options)
    core.start()
    listen = options.server
    LOG.info("Serving on %s port %s", listen.listen_address, listen.listen_port)
    config = uvicorn.Config(
        app.make(core, tokens),
        host=listen.listen_address,
        port=listen.listen_port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ca_certs=options.server.client_ca_file,
        ssl_cert_reqs=client_certificates,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    try:
        server.serve(_server(config, core))
    finally:
        core.close()


def _server(config: uvicorn.Config, core: Core) -> server.Server:
    made = server.Server(config)
    # A request may need two calls to a node in a row.
    made.patience = 2 * core.conf.nodes.budget + core.conf.server.lock_timeout
    made.grace = core.conf.server.shutdown_grace
    made.on_leaving = core.leaving.set
    made.on_stopping = lambda: _let_nobody_wait(core)
    return made


def _client_certificates(options: cfg.ConfigOpts) -> ssl.VerifyMode:
    wanted = options.server.client_certificates
    if wanted == "no":
        return ssl.CERT_NONE
    try:
        # Without a file the system's authorities would be trusted.
        pathlib.Path(options.server.client_ca_file or "").read_bytes()
        ssl.create_default_context(cafile=options.server.client_ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise errors.ConfigError(
            f"[server] client_ca_file {options.server.client_ca_file} cannot be used: {exc}",
            way_out="name the authority of client certificates, or set client_certificates to no",
        ) from exc
    return ssl.CERT_REQUIRED if wanted == "required" else ssl.CERT_OPTIONAL


def _let_nobody_wait(core: Core) -> None:
    core.stopping.set()
    watch.end()


def _check_tls(options: cfg.ConfigOpts) -> tuple[str, str]:
    certificate = options.server.tls_cert_file
    key = options.server.tls_key_file or certificate
    try:
        for path in (certificate, key):
            pathlib.Path(path).read_bytes()
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise errors.ConfigError(
            f"[server] tls_cert_file {certificate} cannot be used: {exc}",
            way_out="'kumo-provisioner init' makes a certificate",
        ) from exc
    return certificate, key


if __name__ == "__main__":
    sys.exit(main())
