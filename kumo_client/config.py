# SPDX-License-Identifier: Apache-2.0
"""Settings of the ``kumo`` command: options, then environment, then a file.

The file is ``$XDG_CONFIG_HOME/kumo/client.json`` (``~/.config/kumo/client.json``), a JSON object
with any of ``url`` (a text or a list), ``token``, ``token_file``, ``ca_file``, ``timeout``
(seconds) and ``tenant``. The variables are ``KUMO_URL`` (comma-separated), ``KUMO_TOKEN``,
``KUMO_TOKEN_FILE``, ``KUMO_CA_FILE``, ``KUMO_TIMEOUT`` and ``KUMO_TENANT``. There is no option
for the token itself: a command line can be read by every user of a machine.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from requests.adapters import BaseAdapter

from kumo_client import errors
from kumo_client.session import Session

# Longer than the provisioner waits for a storage node, so that its answer is seen.
DEFAULT_TIMEOUT_SECONDS = 30.0
KEYS = ("url", "token", "token_file", "ca_file", "timeout", "tenant")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the provisioner is and how to speak to it. ``timeout``: seconds for one call.

    ``tenant``: whose objects are meant; ``None`` is the tenant of the token.
    """

    urls: tuple[str, ...]
    token: str = dataclasses.field(repr=False)
    ca_file: str | None = None
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    tenant: str | None = None

    def session(self, *, transport: BaseAdapter | None = None) -> Session:
        """:raises ConfigError: a setting cannot be used."""
        return Session(
            self.urls,
            token=self.token,
            ca_file=self.ca_file,
            budget=self.timeout,
            user_agent="kumo-command",
            transport=transport,
        )


def load(options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from options (those not ``None``), environment and file.

    :param options: values by the names in :data:`KEYS`, and ``config``: another file.
    :raises ConfigError: a setting is missing or wrong; the message names it.
    """
    layers = [
        {key: options[key] for key in KEYS if options.get(key) is not None},
        {key: environ[name] for key in KEYS if environ.get(name := f"KUMO_{key.upper()}")},
        _read_file(options.get("config"), environ),
    ]
    urls = _urls(_first(layers, "url"))
    if not urls:
        raise _missing("the address of the provisioner", "--url", "KUMO_URL", "url")
    ca_file = _first(layers, "ca_file")
    if ca_file is not None and not isinstance(ca_file, str):
        raise errors.ConfigError("ca_file must be a text")
    tenant = _first(layers, "tenant")
    if tenant is not None and not isinstance(tenant, str):
        raise errors.ConfigError("tenant must be a text")
    return Settings(
        urls=urls,
        token=_token(layers),
        ca_file=str(pathlib.Path(ca_file).expanduser()) if ca_file else None,
        timeout=_timeout(_first(layers, "timeout")),
        tenant=tenant,
    )


def _first(layers: list[dict[str, Any]], key: str) -> Any:
    return next((layer[key] for layer in layers if key in layer), None)


def _missing(what: str, option: str, variable: str, key: str) -> errors.ConfigError:
    return errors.ConfigError(
        f"{what} is not set",
        way_out=f"give {option}, or set {variable}, or {key} in ~/.config/kumo/client.json",
    )


def _read_file(chosen: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = pathlib.Path(chosen or f"{base}/kumo/client.json").expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if chosen:
            raise errors.ConfigError(f"the settings file {path} does not exist") from None
        return {}
    except OSError as exc:
        raise errors.ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        # The message of the decoder tells the place, not the content.
        place = str(exc) if isinstance(exc, json.JSONDecodeError) else "it is not UTF-8"
        raise errors.ConfigError(f"{path} is not valid JSON: {place}") from None
    if not isinstance(content, dict):
        raise errors.ConfigError(f"{path} must contain a JSON object")
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise errors.ConfigError(
            f"{path} contains the unknown setting {unknown[0]!r}",
            way_out=f"known are {', '.join(KEYS)}",
        )
    if isinstance(content.get("token"), str) and path.stat().st_mode & 0o077:
        raise errors.ConfigError(
            f"{path} contains a token and can be read by others", way_out=f"chmod 600 {path}"
        )
    relative = {
        key: str(path.parent / pathlib.Path(content[key]).expanduser())
        for key in ("token_file", "ca_file")
        if isinstance(content.get(key), str)
    }
    return content | relative


def _urls(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise errors.ConfigError("url must be a text or a list of texts")
    return tuple(url.strip() for part in parts for url in part.split(",") if url.strip())


def _token(layers: list[dict[str, Any]]) -> str:
    for layer in layers:
        if "token" in layer:
            if not isinstance(layer["token"], str):
                raise errors.ConfigError("token must be a text")
            return layer["token"]
        if "token_file" in layer:
            return _token_from(str(layer["token_file"]))
    raise _missing(
        "the token", "--token-file", "KUMO_TOKEN or KUMO_TOKEN_FILE", "token or token_file"
    )


def _token_from(name: str) -> str:
    path = pathlib.Path(name).expanduser()
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise errors.ConfigError(f"the token file {path} does not exist") from None
    except OSError as exc:
        raise errors.ConfigError(f"cannot read the token file {path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise errors.ConfigError(f"the token file {path} is not plain text") from None
    if not token:
        raise errors.ConfigError(f"the token file {path} is empty")
    return token


def _timeout(value: Any) -> float:
    if value is None:
        return DEFAULT_TIMEOUT_SECONDS
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise errors.ConfigError("timeout must be a number of seconds above 0")
    return seconds
