# SPDX-License-Identifier: Apache-2.0
"""What all wire objects share.

Attributes are snake_case; the names on the wire are the aliases. Unknown fields are ignored and
``null`` counts as absent, because existing clients send whole objects with nulls for what is not
set. Answers always carry every field: an absent one reads as the text "N/A" in old clients.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kumo_client import errors

MAX_CAPACITY_GIB = 1 << 20
SUCCESS = "Success"


def _not_reserved(value: str) -> str:
    for text in errors.RESERVED_TEXTS:
        if text in value:
            raise ValueError(f"must not contain {text!r}, which old clients take for an error")
    if value.isascii() and value.isprintable():
        return value
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError("must not contain control characters")
    # JSON can spell half a surrogate pair; no such text can be stored or sent again.
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise ValueError("must be valid Unicode")
    return value


def _trimmed(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _uuid_text(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError("must be a UUID") from None


def _drop_nulls(value: Any) -> Any:
    return [item for item in value if item is not None] if isinstance(value, list) else value


# Old hosts send their id with a trailing newline.
Text = Annotated[str, BeforeValidator(_trimmed), AfterValidator(_not_reserved)]
Name = Annotated[Text, Field(min_length=1, max_length=255)]
UuidText = Annotated[str, BeforeValidator(_trimmed), AfterValidator(_uuid_text)]
CapacityGib = Annotated[int, Field(ge=1, le=MAX_CAPACITY_GIB)]
# NVMe Base Specification 2.0, section 4.5: an NQN has at most 223 bytes.
HostNqn = Annotated[Text, Field(min_length=11, max_length=223, pattern=r"^nqn\.")]
TextList = Annotated[list[Text], BeforeValidator(_drop_nulls), Field(max_length=256)]


class WireModel(BaseModel):
    """Base of all objects on the wire."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    def wire(self) -> dict[str, Any]:
        """JSON-ready dict with the names of the wire; unset optional values are left out."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)


class StatusAnswer(WireModel):
    """Answer of every mutation."""

    status: str = SUCCESS
    description: str = ""
    transient: bool = False
    request_id: str = Field("", alias="requestId")


class Portal(WireModel):
    """One address where a node exports namespaces.

    ``transport`` is ``TCP`` or ``RoCEv2`` on the wire (any other text means TCP to old clients);
    ``port`` is the NVMe-oF service id, 4420 by default.
    """

    ip: Text
    port: int = Field(4420, ge=1, le=65535)
    transport: Text = "TCP"
