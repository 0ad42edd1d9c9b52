"""The wire format of every error, in every dialect."""

from msgspec import Struct


class ErrorBody(Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None = None


class ErrorEnvelope(Struct, frozen=True):
    """What went wrong: `code` is stable and for programs, `message` is for people."""

    error: ErrorBody
