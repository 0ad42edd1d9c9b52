"""Which pages may ask: the Host and Origin of a request.

A page in a browser can reach whatever that browser reaches. Either it asks under a name
of its own that suddenly points to this machine (DNS rebinding, CVE-2024-28224), which Host tells;
or under ours, which Origin tells. Programs can write there what they like: for them there are keys.

Always allowed are hosts that no name server can point elsewhere: addresses, localhost and what is
below it; and origins that are the host itself, or on this machine.
"""

import functools
import ipaddress
import re
import socket

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.api.http.errors import LlmserveErrorHandler
from llmserve.config.schema import ServerConfig
from llmserve.errors import PermissionDeniedError

_HOST = re.compile(r"(?:\[([^]]*)\]|([^]\[:/?#@\s]*))(?::\d{0,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_MAX_NAME = 253  # characters of a name in DNS


class HostError(PermissionDeniedError, code="host_not_allowed"):
    """Not a name of this server: a page may have bound its own name to our address."""


class OriginError(PermissionDeniedError, code="origin_not_allowed"):
    """The page that asks is of an origin that is not allowed."""


class HostCheck:
    """Refuses requests of foreign Host or Origin with 403, before anything reads them."""

    def __init__(self, app: ASGIApp, server: ServerConfig, on_error: LlmserveErrorHandler) -> None:
        self._app = app
        self._on_error = on_error
        self._names = {*server.allowed_hosts, *_own_names(server.host)}
        self._suffixes = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._origins = frozenset(server.allowed_origins)
        self._check = functools.lru_cache(maxsize=256)(self._check_pair)  # remembers what is right

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = origin = None
            for name, value in scope["headers"]:
                if name == b"host":
                    host = value
                elif name == b"origin":
                    origin = value if origin is None else origin + b", " + value
            try:
                self._check(host, origin)
            except PermissionDeniedError as error:
                response = await self._on_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_pair(self, host: bytes | None, origin: bytes | None) -> None:
        """Raises `HostError`, `OriginError`. No browser speaks HTTP/1.0, which has no Host."""
        host_text = None if host is None else host.decode("latin-1").lower()
        if host_text is not None and not self._is_ours(_name_in(host_text)):
            raise HostError(
                f"this server does not answer to the name {_shown(host_text)}; if it is meant to,"
                " add it to allowed_hosts of [server] in models.toml"
            )
        if origin is not None and not self._may_ask(origin.decode("latin-1").lower(), host_text):
            raise OriginError(
                f"pages of {_shown(origin.decode('latin-1'))} may not ask this server; if they are"
                " meant to, add that to allowed_origins of [server] in models.toml"
            )

    def _is_ours(self, name: str | None) -> bool:
        if name is None:
            return False
        if _is_local(name) or _address(name) or not self._names.isdisjoint(("*", name)):
            return True
        return name.endswith(self._suffixes)

    def _may_ask(self, origin: str, host: str | None) -> bool:
        if not self._origins.isdisjoint(("*", origin)):
            return True
        scheme, separator, authority = origin.partition("://")
        if not separator:  # null: a file, a sandbox, a redirect
            return False
        port = _DEFAULT_PORTS.get(scheme, "")
        if host is not None and authority.removesuffix(port) == host.removesuffix(port):
            return True
        name = _name_in(authority)
        return name is not None and _is_local(name)


def with_cors(app: ASGIApp, server: ServerConfig) -> ASGIApp:
    """`app` as pages of other origins may read it, if there are any that may."""
    if not server.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=server.allowed_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        allow_private_network=True,  # pages of the internet, asking this machine
        expose_headers=("x-request-id", "x-llmserve-model", "retry-after"),
    )


def _own_names(host: str) -> set[str]:
    """The names by which others reach a server that listens at `host`."""
    if _is_local(host):
        return set()
    return {name.lower() for name in (host, socket.gethostname())}


def _name_in(authority: str) -> str | None:
    """The host in `host[:port]`, without brackets and the root's dot; None if it can be none."""
    match = _HOST.fullmatch(authority)
    if not match:
        return None
    name = (match[1] or match[2] or "").removesuffix(".")
    return name if 0 < len(name) <= _MAX_NAME else None


def _is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_NAME else text[:_MAX_NAME] + "…")
