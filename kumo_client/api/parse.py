# SPDX-License-Identifier: Apache-2.0
"""Decoded JSON to models."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import pydantic

from kumo_client import errors
from kumo_client.schemas.common import WireModel

M = TypeVar("M", bound=WireModel)

# What an absent attribute turns into when old clients send it back and a server stores it.
NOT_AVAILABLE = "N/A"
# A person may have chosen this very text for these.
_FREE_TEXT = frozenset({"alias", "name", "description"})


def quoted(part: str) -> str:
    """One segment of a path.

    :raises InvalidInputError: the text is empty or is a relative path.
    """
    if part in ("", ".", ".."):
        raise errors.InvalidInputError(f"{part!r} is not an identifier")
    return quote(part, safe="")


def model(cls: type[M], data: Any) -> M:
    """The object of an answer.

    :raises ProtocolError: it does not have the fields it must have.
    """
    if not isinstance(data, dict):
        raise errors.ProtocolError(f"the server answered {_kind(data)} instead of an object")
    try:
        return cls.model_validate(_without_not_available(data))
    except pydantic.ValidationError as exc:
        raise errors.ProtocolError(_complaint(cls, exc)) from None


def models(cls: type[M], data: Any) -> list[M]:
    """The objects of a list answer.

    :raises ProtocolError: it is no list, or an element is not as it must be.
    """
    if not isinstance(data, list):
        raise errors.ProtocolError(f"the server answered {_kind(data)} instead of a list")
    return [model(cls, item) for item in data]


def one(cls: type[M], data: Any, what: str, volume: str | None = None) -> M:
    """The object of a list answer to a question for one item.

    :param what: the item for the error message, such as ``volume 1234``.
    :raises NotExistsError: the list is empty, which says definitely that there is none.
    :raises ProtocolError: there are several, or the answer is no list.
    """
    found = models(cls, data)
    if not found:
        raise errors.NotExistsError(f"{what} does not exist", volume=volume)
    if len(found) > 1:
        raise errors.ProtocolError(f"the server answered {len(found)} objects for {what}")
    return found[0]


def _without_not_available(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_not_available(item)
            for name, item in value.items()
            if item != NOT_AVAILABLE or name in _FREE_TEXT
        }
    if isinstance(value, list):
        return [_without_not_available(item) for item in value if item != NOT_AVAILABLE]
    return value


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else "an object" if isinstance(data, dict) else "text"


def _complaint(cls: type[WireModel], exc: pydantic.ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the object"
    return f"the server answered a wrong {cls.__name__}: {place}: {first['msg']}"
