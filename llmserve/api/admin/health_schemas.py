"""The wire format of GET /health and GET /ready."""

from typing import Literal

from msgspec import Struct


class Status(Struct):
    status: Literal["ok", "ready"]
