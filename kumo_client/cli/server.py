# SPDX-License-Identifier: Apache-2.0
"""``kumo info``, ``kumo reconcile``, ``kumo metrics`` and ``kumo completion``."""

from __future__ import annotations

import argparse
from typing import Any

import argcomplete
from pydantic import ConfigDict

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import command, output
from kumo_client.schemas.common import WireModel

SHELLS = ("bash", "zsh")


class Counts(WireModel):
    """How often each thing was done."""

    model_config = ConfigDict(extra="allow")


def register(subparsers: Any) -> None:
    """Add the verbs."""
    command.looking(
        subparsers, "info", "Show version, free space and extensions of the server", _info
    )
    command.verb(
        subparsers, "reconcile", "Compare record and storage nodes now, and repair", _reconcile
    )
    command.verb(subparsers, "metrics", "Print the metrics of the server", _metrics)
    completion = subparsers.add_parser(
        "completion", help="Print what makes the shell complete", description=_COMPLETION
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(offline=_completion)


_COMPLETION = """Print what makes the shell complete nouns, verbs, options, names and uuids.
For this shell: eval "$(kumo completion bash)". For all: write it into a file in
/etc/bash_completion.d, or for zsh as _kumo into a directory of $fpath."""


def _info(provisioner: Provisioner, args: argparse.Namespace) -> output.View:
    return output.Single(provisioner.info())


def _reconcile(provisioner: Provisioner, args: argparse.Namespace) -> None:
    output.show_one(Counts.model_validate(provisioner.reconcile()), args.format)


def _metrics(provisioner: Provisioner, args: argparse.Namespace) -> None:
    print(output.plain(provisioner.metrics()), end="")


def _completion(args: argparse.Namespace) -> None:
    print(argcomplete.shellcode(["kumo"], shell=args.shell))
