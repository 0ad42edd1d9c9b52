"""h11 with bounds of ours, and nothing that two readers could understand differently.

Bounds of nginx's and Apache's order; a client that behaves comes nowhere near them.
"""

from collections.abc import Callable

import h11

from llmserve.errors import InvalidRequestError, LlmserveError
from llmserve.wire.validation import clipped

MAX_HEAD_BYTES = 32 << 10  # request line and headers; of a chunk: its size, extensions, trailers
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 << 10

# A chunk costs 5 us, however small it is: a body of bytes would hold up all others for a minute.
_FREE_CHUNKS = 2048
_MIN_CHUNK_BYTES = 64  # on average, of the chunks beyond those

_Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class MalformedError(InvalidRequestError, code="malformed_request"):
    """The bytes are not an HTTP request that we accept."""


class TargetTooLongError(MalformedError, status=414):
    pass


class HeadTooLargeError(MalformedError, status=431):
    pass


class NotImplementedHereError(MalformedError, status=501):
    pass


class VersionError(MalformedError, status=505):
    pass


class Parser(h11.Connection):
    """What it refuses goes to `refuse`, once; then it reads nothing more."""

    def __init__(self, refuse: Callable[[LlmserveError], None]) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._refuse = refuse
        self._has_refused = False
        self._num_chunks = 0  # of this body
        self._num_bytes = 0

    def next_event(self) -> _Event:
        if self._has_refused:
            return h11.NEED_DATA
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._num_chunks = self._num_bytes = 0
                check_head(event)
            elif isinstance(event, h11.Data):
                self._check_chunk(event)
        except h11.RemoteProtocolError as error:
            return self._refused(_explain(error))
        except MalformedError as error:
            return self._refused(error)
        return event

    def _refused(self, error: LlmserveError) -> type[h11.NEED_DATA]:
        self._has_refused = True
        self._refuse(error)
        return h11.NEED_DATA

    def _check_chunk(self, data: h11.Data) -> None:
        self._num_chunks += data.chunk_start
        self._num_bytes += len(data.data)
        num_paid = self._num_chunks - _FREE_CHUNKS
        if num_paid > 0 and self._num_bytes < num_paid * _MIN_CHUNK_BYTES:
            raise MalformedError(
                f"the body came in {self._num_chunks} chunks of less than {_MIN_CHUNK_BYTES} bytes;"
                " send larger ones, or a Content-Length"
            )


def check_head(request: h11.Request) -> None:
    """Raises `MalformedError` for what h11 lets through."""
    if request.http_version not in (b"1.1", b"1.0"):
        version = request.http_version.decode("ascii")
        raise VersionError(f"this server speaks HTTP/1.1, not HTTP/{version}")
    if len(request.target) > MAX_TARGET_BYTES:
        raise TargetTooLongError(
            f"the address has {len(request.target)} bytes; this server takes at most"
            f" {MAX_TARGET_BYTES}"
        )
    num_bytes = len(request.method) + len(request.target)
    framings = set()
    for name, value in request.headers:
        num_bytes += len(name) + len(value) + 4
        if name in (b"content-length", b"transfer-encoding"):
            framings.add(name)
    if num_bytes > MAX_HEAD_BYTES or len(request.headers) > MAX_HEADERS:
        raise _head_too_large()
    if len(framings) > 1:  # a proxy before us may take the other one: request smuggling
        raise MalformedError("give Content-Length or Transfer-Encoding, not both")


def _explain(error: h11.RemoteProtocolError) -> MalformedError:
    """h11's error in our words; it may quote a whole header."""
    if error.error_status_hint == 431:
        return _head_too_large()
    kind = NotImplementedHereError if error.error_status_hint == 501 else MalformedError
    return kind(f"not a valid HTTP request: {clipped(str(error))}")


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(
        f"the headers are too large; this server takes at most {MAX_HEADERS} of them, of at most"
        f" {MAX_HEAD_BYTES} bytes together with the address"
    )
