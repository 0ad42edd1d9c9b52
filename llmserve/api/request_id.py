"""`x-request-id` on every answer, for the one who reads a log to say which request it was."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_USABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Around the whole application, so that answers to bugs have one too.

    A proxy's own id is kept, if it is harmless to repeat.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or new_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_id)


def new_id() -> bytes:
    return b"req_" + secrets.token_hex(16).encode()


def _given_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _USABLE.fullmatch(value):
            return bytes(value)
    return None
