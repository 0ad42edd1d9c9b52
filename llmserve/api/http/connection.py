"""One client's connection: uvicorn's protocol over h11, with an end to every wait for the client.

uvicorn waits for ever for a first request, for the rest of a head and for a reader that does not
read. Here a connection is always in one `Stage`, and each stage that depends on the client has a
time limit; the body's is in `api/http/upload.py`, where it can be answered like other errors.
"""

import asyncio
import enum
import logging
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmserve.api.http.connection_limits import Admission
from llmserve.api.http.errors import LINGER_BYTES, LINGER_S, encode_error
from llmserve.api.http.parser import Parser
from llmserve.api.http.request_log import new_id
from llmserve.config.schema import ServerConfig
from llmserve.errors import CrowdedError, LlmserveError, RequestTimeoutError

log = logging.getLogger("llmserve.request")


class Stage(enum.Enum):
    IDLE = enum.auto()  # nothing of a request has come
    HEAD = enum.auto()  # a part of its head has
    BODY = enum.auto()  # its head has, and perhaps a part of its body
    ANSWER = enum.auto()  # all of it has: the next move is ours
    REST = enum.auto()  # it is answered, but its body is still coming
    REFUSED = enum.auto()  # it is answered, and whatever comes is dropped


class Connection(H11Protocol):
    def __init__(self, admission: Admission, server: ServerConfig, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.conn = Parser(self._refuse)
        self.timeout_keep_alive = server.idle_timeout  # type: ignore[assignment]  # takes a float
        self._admission = admission
        self._server = server
        self._stage: Stage | None = None
        self._stage_end_s: float | None = None  # of the loop's clock
        self._is_refused = False
        self._num_dropped = 0  # bytes
        self._stall: asyncio.TimerHandle | None = None

    # -- what happens ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if not self._admission.admit(self, len(self.connections)):
            self._refuse(CrowdedError("all connections are in use; try again", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_stall()
        self._admission.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._stage in (Stage.REST, Stage.REFUSED):
            self._num_dropped += len(data)
            if self._num_dropped > LINGER_BYTES:
                self._close()
        if not self._is_refused and not self.transport.is_closing():
            super().data_received(data)
            self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unset_stall()

    def shutdown(self) -> None:
        if self._stage is Stage.ANSWER:
            super().shutdown()
        else:
            self._close()

    def evict(self) -> None:
        """Close at once, whatever is being waited for: the place is needed."""
        self._close()

    def _should_upgrade(self) -> bool:
        return False  # to nothing, and a client that offers it is no reason for a warning

    # -- stages ----------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out the stage, and see to it that it ends."""
        if self.transport.is_closing():
            self._see_off()
            return
        stage = self._stage_now()
        if stage is not self._stage:
            self._stage = stage
            limit_s = self._limit_s(stage)
            self._stage_end_s = None if limit_s is None else self.loop.time() + limit_s
            self._num_dropped = 0
            self._tell_admission(stage)
        if stage is Stage.IDLE:
            # What is left of the last request is a third of what an idle connection takes.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
            if self.timeout_keep_alive_task is not None:
                return  # uvicorn has set it, for just as long
        self._unset_keepalive_if_required()
        if self._stage_end_s is None:
            return
        if self.loop.time() >= self._stage_end_s:  # data comes so fast that no timer gets a turn
            self.timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_at(
                self._stage_end_s, self.timeout_keep_alive_handler
            )

    def _stage_now(self) -> Stage:
        if self._is_refused:
            return Stage.REFUSED
        if self.cycle is not None and not self.cycle.response_complete:
            return Stage.BODY if self.cycle.more_body else Stage.ANSWER
        if self.conn.their_state is h11.SEND_BODY:
            return Stage.REST
        return Stage.HEAD if self.conn.trailing_data[0] else Stage.IDLE

    def _tell_admission(self, stage: Stage) -> None:
        match stage:
            case Stage.ANSWER:
                self._admission.forget(self)
            case Stage.REFUSED:
                self._admission.leave(self)
            case _:
                self._admission.wait(self)

    def _limit_s(self, stage: Stage) -> float | None:
        match stage:
            case Stage.IDLE:
                return self._server.idle_timeout
            case Stage.HEAD:
                return self._server.header_timeout
            case Stage.REST | Stage.REFUSED:
                return LINGER_S
            case _:
                return None

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's name for when the stage has lasted too long."""
        if self._stage is Stage.HEAD:
            limit_s = self._server.header_timeout
            message = f"the head of a request must come within {limit_s:g} s (header_timeout)"
            self._refuse(RequestTimeoutError(message))
        else:
            self._close()

    # -- ends ------------------------------------------------------------------------------------

    def _refuse(self, error: LlmserveError) -> None:
        """Answer with `error`, unless there is an answer already, and end."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # for the application
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._close()
            return
        request_id = new_id()
        # Not its message, which may quote a header.
        fields = {"request_id": request_id.decode(), "status": error.status, "error": error.code}
        log.info("refused: %d %s", error.status, error.code, extra={"fields": fields})
        self.transport.write(_encode(error, request_id))
        self.transport.write_eof()
        self._is_refused = True
        self.flow.resume_reading()
        self._look()

    def _close(self) -> None:
        self.transport.close()
        self._see_off()

    def _see_off(self) -> None:
        """The connection is closed once the client has taken what is written; or has not."""
        self._unset_keepalive_if_required()
        self._admission.forget(self)
        if self.transport.get_write_buffer_size():
            self._watch_reader()

    def _watch_reader(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(self._server.write_timeout, self.transport.abort)

    def _unset_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _encode(error: LlmserveError, request_id: bytes) -> bytes:
    """A whole answer, where there is no application to give it."""
    body = encode_error(error)
    lines = [
        b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + request_id,
        b"connection: close",
    ]
    if error.retry_after_s is not None:
        lines.append(b"retry-after: %d" % error.retry_after_s)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
