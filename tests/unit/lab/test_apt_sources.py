# SPDX-License-Identifier: Apache-2.0
"""Which of this machine's apt sources an image is made from."""

import pytest

from lab import apt_sources
from lab.errors import LabError

DEB822 = """\
# The release
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
# deb cdrom:[Debian]/ bookworm main
deb http://mirror.example/debian bookworm main non-free # all of it
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/security bookworm-security main
"""
FOREIGN = "Types: deb\nURIs: http://other.example\nSuites: stable\nComponents: main\n"


@pytest.fixture
def apt(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822_of_any_file_name_without_foreign_ones(apt):
    (apt / "sources.list.d/0000main.sources").write_text(DEB822)
    (apt / "sources.list.d/other.sources").write_text(FOREIGN)
    assert apt_sources.debian(apt) == DEB822.removeprefix("# The release\n")


def test_a_disabled_stanza_does_not_count(apt):
    text = DEB822.replace("Types: deb\n", "Enabled: no\nTypes: deb\n")
    (apt / "sources.list.d/debian.sources").write_text(text)
    with pytest.raises(LabError, match="have no bookworm-security"):
        apt_sources.debian(apt)


@pytest.mark.parametrize("name", ["sources.list", "sources.list.d/debian.list"])
def test_one_line_style_becomes_deb822(apt, name):
    (apt / name).write_text(ONE_LINE)
    assert apt_sources.debian(apt).split("\n\n") == [
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n"
        "Components: main non-free",
        "Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n"
        "Components: main\nSigned-By: /k.gpg\n",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE_LINE.replace("bookworm", "trixie"), "are not those of Debian 12"),
        (ONE_LINE.replace("bookworm-security", "bookworm-backports"), "have no bookworm-security"),
        ("# nothing\n", "are not those of Debian 12"),
    ],
)
def test_another_release(apt, text, message):
    (apt / "sources.list").write_text(text)
    with pytest.raises(LabError, match=message):
        apt_sources.debian(apt)


def test_no_sources_at_all(tmp_path):
    with pytest.raises(LabError, match="are not those of Debian 12"):
        apt_sources.debian(tmp_path)
