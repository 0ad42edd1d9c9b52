"""A mend for httpcore2: over HTTP/2 it forgets an answer that is left early.

The provider would go on generating, and the connection would run out of streams
(https://github.com/encode/httpcore/pull/1098). With `mend` it resets the stream, which is what
closing the connection is in HTTP/1.1.
"""

import contextlib

import h2.errors
import httpcore2

_WRITE_S = 1.0
_forget = httpcore2.AsyncHTTP2Connection._response_closed


def mend() -> None:
    """For every client of this process; doing it twice does nothing more."""
    httpcore2.AsyncHTTP2Connection._response_closed = _reset_and_forget  # type: ignore[method-assign]


async def _reset_and_forget(self: httpcore2.AsyncHTTP2Connection, stream_id: int) -> None:
    stream = self._h2_state.streams.get(stream_id)
    if stream is not None and not stream.closed:
        self._h2_state.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        # If it cannot be written, the connection is broken, and all its requests find out.
        with contextlib.suppress(httpcore2.NetworkError, httpcore2.TimeoutException):
            async with self._write_lock:
                await self._network_stream.write(self._h2_state.data_to_send(), _WRITE_S)
    await _forget(self, stream_id)
