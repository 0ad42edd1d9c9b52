"""API keys at the door: whose request it is, before any byte of the body is read.

`api/caller.py` has what they may do then. Without keys the door is open, and what is shown there
is not looked at: many clients send something in any case.
"""

from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.api.http.errors import LlmserveErrorHandler
from llmserve.auth.keyring import Grant
from llmserve.errors import AuthenticationError, LlmserveError, PermissionDeniedError
from llmserve.gateway import Gateway


class Level(IntEnum):
    """What a route asks for, where there are keys; a higher one asks for more."""

    OPEN = 0  # probes, and what is the same on every server
    KEY = 1
    ADMIN = 2  # changes the server, or shows what others do


class Keys:
    """Lets in what shows a key, and puts its grant into the scope's state, for `api/caller.py`."""

    def __init__(
        self,
        app: ASGIApp,
        gateway: Gateway,
        on_error: LlmserveErrorHandler,
        level_of: Callable[[Scope], Level],
    ) -> None:
        self._app = app
        self._level_of = level_of
        self._keyring = gateway.keyring
        self._requests = gateway.metrics.key_requests
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        level = self._level_of(scope) if scope["type"] == "http" else Level.OPEN
        if self._keyring.is_open or level is Level.OPEN:
            await self._app(scope, receive, send)
            return
        with ExitStack() as on_end:
            visit = _Visit(send, on_end)
            on_end.callback(lambda: self._requests.labels(visit.name, visit.status).inc())
            try:
                self._admit(scope, level, visit, on_end)
            except LlmserveError as error:
                refusal = await self._on_error(Request(scope), error)
                await refusal(scope, receive, visit.send)
            else:
                await self._app(scope, receive, visit.send)

    def _admit(self, scope: Scope, level: Level, visit: "_Visit", on_end: ExitStack) -> None:
        """Raises `LlmserveError`. Limits are for what computes, which is POST."""
        grant = visit.grant = self._keyring.find(shown_key(scope))
        scope.setdefault("state", {})["grant"] = grant  # also for the log, of refused requests too
        if level is Level.ADMIN and not grant.key.admin:
            raise PermissionDeniedError(
                "this API key may not do this: its entry lacks admin = true"
            )
        if level is Level.KEY and scope["method"] == "POST":
            on_end.enter_context(grant.admitted())


def shown_key(scope: Scope) -> bytes:
    """The key that a request has. Raises `AuthenticationError`."""
    headers = dict(reversed(scope["headers"]))  # the first of a name counts
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        key = headers.get(b"x-api-key", b"")  # Anthropic's way
    if not key.strip():
        raise AuthenticationError(
            "this server asks for an API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`"
        )
    return bytes(key.strip())


class _Visit:
    """One request with its key: how it is counted, and the headers of its answer.

    It ends before the last byte goes out: a client that has it may ask again at once.
    """

    def __init__(self, send: Send, on_end: ExitStack) -> None:
        self.grant: Grant | None = None
        self.status = "disconnected"
        self._send = send
        self._on_end = on_end

    @property
    def name(self) -> str:
        """Of a key that there is: what others show must not become a time series."""
        return self.grant.name if self.grant else ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
            if self.grant:
                headers = [*message.get("headers", ()), *self.grant.rate_headers()]
                message = {**message, "headers": headers}
        elif not message.get("more_body"):
            self._on_end.close()
        await self._send(message)
