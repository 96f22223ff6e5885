# SPDX-License-Identifier: Apache-2.0
"""The command ``kumo-lab``.

Exit codes: 0 well, 1 failed, 2 wrong usage or something missing on this machine, 130 interrupted;
``kumo-lab exec`` ends with the code of the command it ran.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from lab.errors import LabError, PreflightError, UsageError

# Heavy modules are imported by the commands that use them: see lab/commands.py.
KERNELS = ("6.12", "6.1")
FAILED, USAGE, INTERRUPTED = 1, 2, 130
_MACHINE_VERBS = {
    "kill": "machines lose power",
    "start": "power machines on and wait until they are up",
    "reboot": "reboot machines in order and wait until they are up",
    "cut": "cut machines off the network",
    "heal": "plug machines in again",
    "pause": "freeze machines",
    "resume": "let frozen machines go on",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="kumo-lab", description="Virtual machines with a real kernel, to see Kumo work."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="kumo", help="which lab (default: %(default)s)")
    kernel = argparse.ArgumentParser(add_help=False)
    kernel.add_argument(
        "--kernel", choices=KERNELS, default=KERNELS[0], help="default: %(default)s"
    )
    keep = argparse.ArgumentParser(add_help=False)
    keep.add_argument("--keep", action="store_true", help="leave the lab running at the end")

    verbs.add_parser("build", parents=[kernel], help="make the image of the machines")
    up = verbs.add_parser("up", parents=[named, kernel], help="make a lab and boot its machines")
    up.add_argument("--storage", type=_count, default=3, metavar="N", help="default: %(default)s")
    up.add_argument("--compute", type=_count, default=1, metavar="M", help="default: %(default)s")
    up.add_argument("--ssds", type=_count, metavar="N", help="SSDs of a storage machine")
    up.add_argument("--ssd-gib", type=_count, metavar="GIB", help="size of each, sparse")
    verbs.add_parser("status", parents=[named], help="show machines and services")
    verbs.add_parser("down", parents=[named], help="remove the lab and all that belongs to it")
    _add_machine_verbs(verbs, named)
    verbs.add_parser("scenarios", help="list the scenarios")
    run = verbs.add_parser("run", parents=[named, kernel, keep], help="run scenarios")
    which = run.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--all",
        action="store_true",
        help="every scenario but the long ones, which 'kumo-lab scenarios' shows as such",
    )
    which.add_argument("scenario", nargs="*", default=[], help="their names")
    verbs.add_parser(
        "tour", parents=[named, kernel, keep], help="the whole life of a volume, from OpenStack"
    )
    return parser


def _add_machine_verbs(verbs: argparse._SubParsersAction, named: argparse.ArgumentParser) -> None:
    execute = verbs.add_parser(
        "exec",
        parents=[named],
        help="run a command in a machine",
        usage="kumo-lab exec [--name NAME] [--timeout SECONDS] MACHINE -- COMMAND...",
    )
    execute.add_argument("--timeout", type=float, default=120.0, help="seconds (%(default)s)")
    execute.add_argument("machine")
    execute.add_argument("command", nargs="+", help="a single word goes through a shell")
    logs = verbs.add_parser("logs", parents=[named], help="show a console or a service log")
    logs.add_argument("-n", "--lines", type=_count, help="only so many, from the end")
    logs.add_argument("log", nargs="?", metavar="NAME", help="without it: list the names")
    for verb, text in _MACHINE_VERBS.items():
        item = verbs.add_parser(verb, parents=[named], help=text)
        item.add_argument("machines", nargs="+", metavar="MACHINE")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def main(
    argv: Sequence[str] | None = None,
    find: Callable[[str], Callable[[argparse.Namespace], int]] | None = None,
) -> int:
    """Run one command and return its exit code.

    :param find: the function of a verb, by its name; by default in :mod:`lab.commands`.
    """
    options = build_parser().parse_args(argv)
    try:
        return (find or _find)(options.verb)(options)
    except (PreflightError, UsageError) as error:
        print(f"kumo-lab: {error}", file=sys.stderr)
        return USAGE
    except LabError as error:
        print(f"kumo-lab: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("kumo-lab: interrupted", file=sys.stderr)
        return INTERRUPTED


def _find(verb: str) -> Callable[[argparse.Namespace], int]:
    from lab import commands

    return commands.find(verb)


if __name__ == "__main__":
    sys.exit(main())
