"""Every request's `x-request-id`, log line and span.

Around the whole application, so that answers to bugs count too.
"""

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.errors import LlmserveError
from llmserve.telemetry.request_record import RequestRecord, note_error, set_current

if TYPE_CHECKING:
    from llmserve.telemetry.tracing import RequestSpan, Tracing

log = logging.getLogger("llmserve.request")

_MAX_PATH_LEN = 200
_USABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """`is_probe(path)`: it is asked every few seconds, so it is told at debug and not traced."""

    def __init__(
        self,
        app: ASGIApp,
        tracing: "Tracing | None",
        is_probe: Callable[[str], bool],
        *,
        log_prompts: bool,
    ) -> None:
        self._app = app
        self._is_probe = is_probe
        self._tracing = tracing
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = given_id(scope) or new_id()
        record = RequestRecord(request_id.decode(), keeps_text=self._log_prompts)
        set_current(record)  # not undone: uvicorn logs our bugs, and the task ends with the request
        begin_s = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                message = {**message, "headers": headers}
            await send(message)

        with self._span(scope, record) as span:
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                note_error(LlmserveError.code)
                raise
            finally:
                # What `Keys` puts there, and on the same scope.
                record.client = getattr(scope.get("state", {}).get("grant"), "name", None)
                if span:
                    route = getattr(scope.get("route"), "path", None)
                    span.answered(status, route, record.error)
                level = logging.DEBUG if self._is_probe(scope["path"]) else logging.INFO
                _tell(level, scope, record, status, time.monotonic() - begin_s)

    def _span(
        self, scope: Scope, record: RequestRecord
    ) -> "AbstractContextManager[RequestSpan | None]":
        if self._tracing is None or self._is_probe(scope["path"]):
            return contextlib.nullcontext()
        path = scope["path"][:_MAX_PATH_LEN]
        return self._tracing.request(scope["method"], path, dict(_trace_headers(scope)), record)


def _tell(level: int, scope: Scope, record: RequestRecord, status: int, total_s: float) -> None:
    if not log.isEnabledFor(level):
        return
    method, path = scope["method"], scope["path"][:_MAX_PATH_LEN]
    fields = {
        "method": method,
        "route": path,
        "status": status or None,  # None: the caller left before the answer began
        **record.fields(),
        "total_s": round(total_s, 4),
    }
    log.log(level, "%s %s %s", method, path, status or record.error, extra={"fields": fields})


def _trace_headers(scope: Scope) -> Iterator[tuple[str, str]]:
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            yield name.decode(), value.decode("latin-1")


def new_id() -> bytes:
    return b"req_" + secrets.token_hex(16).encode()


def given_id(scope: Scope) -> bytes | None:
    """A proxy's own id, if it is harmless to repeat."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _USABLE.fullmatch(value):
            return bytes(value)
    return None
