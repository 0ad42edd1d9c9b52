"""The keys of a `[models.NAME]` that is answered by a remote provider, and their checks.

Pure: nothing is resolved or connected. A failed check is a `ValueError` that says what is wrong
and how to mend it; `config/schema.py` puts the file and the key in front.
"""

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from llmserve.config.units import Duration, Headers

# What servers of the OpenAI protocol may take beyond OpenAI's own API.
Extra = Literal[
    "top_k",
    "min_p",
    "ignore_eos",
    "response_format",  # with completions too
    "max_completion_tokens",  # instead of max_tokens
]

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_SECRET_HEADERS = ("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie")
_OUR_HEADERS = (
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host",
    "transfer-encoding",
)  # fmt: skip


class Retry(Struct, frozen=True, forbid_unknown_fields=True):
    """How often one request is tried; see `remote/retry.py` for what is tried again."""

    attempts: Annotated[int, Meta(ge=1, le=10)] = 3  # the first one counts
    max_wait: Duration = Duration(10)  # the longest pause before another attempt


class Provider(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a remote model is, and how it is asked. `urls` is the key `remote`."""

    urls: tuple[str, ...]  # without a slash at the end
    protocol: Literal["openai", "anthropic"] = "openai"
    remote_model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None  # None: NAME
    api_key_env: str | None = None  # the environment variable that has the key
    headers: Headers = Headers()
    timeout: Duration = Duration(120)  # until the first part of an answer; then between parts
    retry: Retry = Retry()
    extra_parameters: tuple[Extra, ...] = ()
    allow_insecure: bool = False  # http to a host that is neither this one nor a private address


KEYS = tuple("remote" if key == "urls" else key for key in Provider.__struct_fields__)


def check_provider(provider: Provider) -> tuple[str, str] | None:
    """The first key that is wrong and what is wrong with it; None if all is well."""
    if not provider.urls:
        return "remote", "no address; give one, such as 'https://provider.example/v1'"
    for url in provider.urls:
        if problem := _url_problem(url, allow_insecure=provider.allow_insecure):
            return "remote", problem
    if len(set(provider.urls)) < len(provider.urls):
        return "remote", "has an address twice"
    # Its value is not shown: people write the key itself there.
    if provider.api_key_env is not None and not _ENV_NAME.fullmatch(provider.api_key_env):
        return "api_key_env", (
            "is not the name of an environment variable; give a name, such as 'PROVIDER_KEY',"
            " and put the key itself into that variable"
        )
    if problem := _headers_problem(provider.headers):
        return "headers", problem
    if provider.timeout <= 0:
        return "timeout", "must be more than 0"
    if provider.extra_parameters and provider.protocol != "openai":
        return "extra_parameters", "only goes with protocol 'openai'"
    return None


def _url_problem(url: str, *, allow_insecure: bool) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"is not a valid address: {error}"
    if "@" in parts.netloc:  # not shown, as it may have a password
        return "has a user name or password; keys come from the environment: use api_key_env"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{url!r} is not a valid address; write it like 'https://provider.example/v1'"
    if parts.query or parts.fragment:
        return f"{url!r} has more than a path; leave out what follows ? or #"
    if re.search(r"[^\x21-\x7e]", url):
        return f"{url!r} has spaces or other characters that no address has"
    if parts.scheme == "http" and not allow_insecure and not is_private(parts.hostname):
        return (
            f"{url!r} would send everything unencrypted over the network; use https, or set"
            " allow_insecure = true"
        )
    return None


def is_private(host: str) -> bool:
    """Whether `host` is this machine, or written as an address that no router of the net passes.

    Other names are not looked up: what they mean can change while the server runs.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_link_local


def _headers_problem(headers: Headers) -> str | None:
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            return (
                f"{name!r} is not a valid header, or its value has characters that are not allowed"
            )
        if name.lower() in _SECRET_HEADERS:
            return f"{name!r} is a key, and keys come from the environment: use api_key_env"
        if name.lower() in _OUR_HEADERS:
            return f"{name!r} is set by llmserve; leave it out"
    return None
