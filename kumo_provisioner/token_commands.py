# SPDX-License-Identifier: Apache-2.0
"""``kumo-provisioner token``: make a token without the API, and rotate the signing keys."""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

from oslo_config import cfg

from kumo_client import errors
from kumo_client.schemas.token import HOUR, MAX_LIFE
from kumo_provisioner import init, keys, permissions


def add_arguments(parser: argparse.ArgumentParser) -> Any:
    """Add the verbs; gives their parsers."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="print a token")
    create.add_argument("--name", required=True, help="whom it is for")
    create.add_argument("--role", choices=permissions.ROLES, default=permissions.STORAGE)
    create.add_argument("--tenant", default="", help="the only tenant that it may see")
    create.add_argument("--hours", type=int, default=1, help="how long it lives (1 to 720)")
    rotate = verbs.add_parser(
        "rotate-keys", help="sign with a new key; tokens of the old ones live on until they expire"
    )
    return create, rotate


def run(arguments: argparse.Namespace, options: cfg.ConfigOpts) -> None:
    """Carry a verb out.

    :raises ConfigError: when there is no key file, or a value is wrong.
    """
    path = options.server.jwt_key_file
    if not path:
        raise errors.ConfigError(
            "[server] jwt_key_file is not set", way_out="'kumo-provisioner init' makes the file"
        )
    if arguments.verb == "rotate-keys":
        found = keys.rotated(keys.load(path), time.time())
        init.write(pathlib.Path(path), keys.dump(found).encode())
        print(f"{path} holds {len(found)} keys; running provisioners use it within seconds.")
        return
    life = arguments.hours * HOUR
    if not HOUR <= life <= MAX_LIFE:
        raise errors.ConfigError(f"--hours must be between 1 and {MAX_LIFE // HOUR}")
    text, _, _ = keys.sign(
        keys.load(path),
        name=arguments.name,
        role=arguments.role,
        tenant=arguments.tenant,
        life=life,
    )
    print(text)
