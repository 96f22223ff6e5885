# SPDX-License-Identifier: Apache-2.0
"""Where the command finds its settings, and what it says when they are missing or wrong."""

import json

import pytest

from kumo_client import config, errors
from kumo_client.session import Session


@pytest.fixture
def settings_file(tmp_path, monkeypatch):
    """Write ~/.config/kumo/client.json of this test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".config" / "kumo" / "client.json"
    path.parent.mkdir(parents=True)

    def write(content, mode=0o600):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
        return path

    return write


def load(options=None, **environ):
    return config.load(options or {}, environ)


def test_from_the_environment():
    found = load(KUMO_URL="https://a:1, https://b:2,", KUMO_TOKEN="t", KUMO_CA_FILE="/ca.pem")
    assert found == config.Settings(("https://a:1", "https://b:2"), "t", "/ca.pem", 30.0)


def test_from_the_file(settings_file, tmp_path):
    path = settings_file(
        {"url": ["https://a:1"], "token_file": "t", "ca_file": "~/ca.pem", "timeout": 3}
    )
    (path.parent / "t").write_text("from-file\n")
    found = load()
    assert found == config.Settings(("https://a:1",), "from-file", str(tmp_path / "ca.pem"), 3.0)


def test_options_win_over_environment_over_file(settings_file, tmp_path):
    settings_file({"url": "https://file:1", "token": "file", "timeout": 1})
    assert load().urls == ("https://file:1",)
    assert load(KUMO_URL="https://env:1", KUMO_TOKEN="env").token == "env"
    token = tmp_path / "token"
    token.write_text("option")
    options = {"url": ["https://option:1", "https://option:2"], "token_file": str(token)}
    found = load(options, KUMO_URL="https://env:1", KUMO_TOKEN="env", KUMO_TIMEOUT="2.5")
    assert found.urls == ("https://option:1", "https://option:2")
    assert (found.token, found.timeout) == ("option", 2.5)


def test_another_file(settings_file, tmp_path):
    settings_file({"url": "https://usual:1", "token": "t"})
    other = tmp_path / "other.json"
    other.write_text('{"url": "https://other:1"}')
    assert load({"config": str(other)}, KUMO_TOKEN="t").urls == ("https://other:1",)
    with pytest.raises(errors.ConfigError, match=r"missing\.json does not exist"):
        load({"config": str(tmp_path / "missing.json")})


def test_xdg_config_home(settings_file, tmp_path):
    (tmp_path / "kumo").mkdir()
    (tmp_path / "kumo" / "client.json").write_text('{"url": "https://xdg:1"}')
    assert load(XDG_CONFIG_HOME=str(tmp_path), KUMO_TOKEN="t").urls == ("https://xdg:1",)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "KUMO_URL"),
        ({"KUMO_URL": " , "}, "KUMO_URL"),
        ({"KUMO_URL": "https://a:1"}, "KUMO_TOKEN_FILE"),
        ({"KUMO_URL": "https://a:1", "KUMO_TOKEN_FILE": "/missing"}, "/missing does not exist"),
        ({"KUMO_URL": "https://a:1", "KUMO_TOKEN_FILE": "/"}, "cannot read the token file /"),
        ({"KUMO_URL": "https://a:1", "KUMO_TOKEN": "t", "KUMO_TIMEOUT": "soon"}, "timeout"),
        ({"KUMO_URL": "https://a:1", "KUMO_TOKEN": "t", "KUMO_TIMEOUT": "-1"}, "timeout"),
    ],
)
def test_what_is_missing_is_named(settings_file, environ, said):
    with pytest.raises(errors.ConfigError, match=said):
        load(**environ)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ({"urls": "https://a:1"}, "unknown setting 'urls'"),
        ({"url": 5}, "url must be"),
        ({"url": "https://a:1", "token": 5}, "token must be"),
        ({"url": "https://a:1", "token": "t", "ca_file": 5}, "ca_file must be"),
        ({"url": "https://a:1", "token": "t", "timeout": []}, "timeout"),
    ],
)
def test_a_wrong_file(settings_file, content, said):
    settings_file(content)
    with pytest.raises(errors.ConfigError, match=said):
        load()


def test_a_file_that_is_not_text(settings_file):
    settings_file("").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(errors.ConfigError, match="not valid JSON"):
        load()


def test_a_file_that_is_a_directory(settings_file, tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot read"):
        load({"config": str(tmp_path)})


def test_a_token_that_others_can_read_is_refused(settings_file):
    settings_file({"url": "https://a:1", "token": "hush"}, mode=0o644)
    with pytest.raises(errors.ConfigError, match="chmod 600") as caught:
        load()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xc3\xa9"])
def test_a_token_file_without_a_token(settings_file, tmp_path, content):
    token = tmp_path / "token"
    token.write_bytes(content)
    with pytest.raises(errors.ConfigError, match="token file"):
        load(KUMO_URL="https://a:1", KUMO_TOKEN_FILE=str(token))


def test_the_token_is_not_shown():
    assert "hush" not in repr(load(KUMO_URL="https://a:1", KUMO_TOKEN="hush"))


# -- what a session refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.example:8090",
        "http://a.example:8090",
        "http://127.0.0.1:8090",
        "ftp://a.example",
        "https://",
        "https://a:port",
        "https://a:99999",
        "https://a/?x=1",
        "https://a/#x",
        "https://a b",
        "https://[::1",
    ],
)
def test_endpoints_that_cannot_be_used(url):
    with pytest.raises(errors.ConfigError, match="endpoint"):
        Session([url], token=None, ca_file=None)


def test_a_password_in_an_endpoint_is_refused_and_not_shown():
    with pytest.raises(errors.ConfigError, match="credentials") as caught:
        Session(["https://user:hush@a:1"], token=None, ca_file=None)
    assert "hush" not in str(caught.value)


def test_http_only_on_loopback_and_only_if_allowed():
    urls = ["http://127.0.0.1:1/", "http://[::1]:1", "https://a:1/", "https://a:1"]
    session = Session(urls, token=None, ca_file=None, allow_http=True)
    assert session.endpoints == ("http://127.0.0.1:1", "http://[::1]:1", "https://a:1")
    for url in ("http://10.0.0.1:1", "http://localhost:1"):
        with pytest.raises(errors.ConfigError, match="not https"):
            Session([url], token=None, ca_file=None, allow_http=True)


@pytest.mark.parametrize("option", ["ca_file", "client_cert"])
def test_certificate_files_are_checked_at_the_start(option, tmp_path):
    options = {"token": None, "ca_file": None}
    missing = tmp_path / "missing.pem"
    with pytest.raises(errors.ConfigError, match=r"missing\.pem does not exist"):
        Session(["https://a:1"], **options | {option: str(missing)})
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(errors.ConfigError, match=r"wrong\.pem cannot be used"):
        Session(["https://a:1"], **options | {option: str(wrong)})
