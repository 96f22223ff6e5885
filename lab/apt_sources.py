# SPDX-License-Identifier: Apache-2.0
"""Debian's own entries of this machine's apt sources, so that images come from its mirror.

Both formats of sources.list(5) are read, from every file apt reads; the answer is in the newer one
(deb822), which mmdebstrap takes on its standard input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError

RELEASE = "bookworm"
SECURITY = f"{RELEASE}-security"
_SUITES = {RELEASE, f"{RELEASE}-updates", SECURITY}
_ONE_LINE = re.compile(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(\S.*)")


def debian(directory: Path) -> str:
    """The stanzas for Debian 12 and its updates.

    :param directory: ``/etc/apt``.
    :raises LabError: the release or its security updates are not among the sources.
    """
    found = [*_stanzas(directory), *_lines(directory)]
    suites = {suite for stanza in found for suite in _field(stanza, "Suites").split()}
    if RELEASE not in suites:
        raise LabError(f"the apt sources of this machine are not those of Debian 12 ({RELEASE})")
    if SECURITY not in suites:
        raise LabError(
            f"the apt sources of this machine have no {SECURITY}",
            way_out="Add that suite of http://security.debian.org/debian-security to them.",
        )
    return "\n\n".join(found) + "\n"


def _stanzas(directory: Path) -> Iterator[str]:
    for path in sorted(directory.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            kept = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
            binary = "deb" in _field(kept, "Types").split()
            enabled = _field(kept, "Enabled").lower() not in ("no", "false", "0")
            if binary and enabled and _SUITES & set(_field(kept, "Suites").split()):
                yield kept.strip()


def _lines(directory: Path) -> Iterator[str]:
    files = [directory / "sources.list", *sorted(directory.glob("sources.list.d/*.list"))]
    for path in files:
        for line in path.read_text().splitlines() if path.exists() else ():
            match = _ONE_LINE.match(line.strip())
            if match and match[3] in _SUITES:
                components = match[4].split("#")[0].strip()
                stanza = f"Types: deb\nURIs: {match[2]}\nSuites: {match[3]}"
                signed = re.search(r"signed-by=(\S+)", match[1] or "")
                extra = f"\nSigned-By: {signed[1]}" if signed else ""
                yield f"{stanza}\nComponents: {components}{extra}"


def _field(stanza: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*)$", stanza, re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else ""
