"""The id of a request, for the one who reads a log to say which one it was."""

import re
import secrets

from starlette.types import Scope

_USABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def new_id() -> bytes:
    return b"req_" + secrets.token_hex(16).encode()


def given_id(scope: Scope) -> bytes | None:
    """A proxy's own id, if it is harmless to repeat."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _USABLE.fullmatch(value):
            return bytes(value)
    return None
