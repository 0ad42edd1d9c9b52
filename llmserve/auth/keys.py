"""What an API key is, and what it may do. Pure.

Keys are held as SHA-256 hashes only. A plain hash is right, because a key is 256 random bits: there
is nothing to guess and no table of likely ones, so the slow, salted hashes that passwords need
would only cost time at every request.
"""

import hashlib
import re
import secrets
from typing import Annotated

from msgspec import Meta, Struct

SHORT_LEN = 20  # characters: a key below could be guessed

_PREFIX = "sk-llmserve-"  # by which a scanner for lost secrets, or a person, knows it
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_USABLE = re.compile(r"[\x21-\x7e]+")  # in a header

Name = Annotated[str, Meta(pattern=f"^{_NAME}$")]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """`[keys.NAME]` of the file. What is not limited is None."""

    sha256: Sha256  # of the key, which is nowhere
    max_concurrency: Limit | None = None  # requests at the same time
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None  # of prompts and answers
    models: tuple[str, ...] | None = None  # names or aliases; None: all
    cache_namespace: Name | None = None  # keys with the same one share prefixes; None: with none
    admin: bool = False  # may load, unload, reload and see the metrics

    @property
    def namespace(self) -> str:
        """For `core.Request.cache_namespace`. No name of a shared one can be that of a key."""
        if self.cache_namespace is not None:
            return f"shared:{self.cache_namespace}"
        return f"key:{sha256(self.sha256.encode())[:32]}"

    def __repr__(self) -> str:
        return "Key(…)"  # it may get into a log, and hashes do not belong there


def sha256(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def new_secret() -> str:
    """A key: 256 bits of the system's randomness, as 43 characters after a prefix."""
    return _PREFIX + secrets.token_urlsafe(32)


def is_name(text: str) -> bool:
    return re.fullmatch(_NAME, text) is not None


def is_usable(secret: str) -> bool:
    """Whether a header can have it."""
    return _USABLE.fullmatch(secret) is not None
