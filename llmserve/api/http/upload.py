"""The body of a request, as it comes: bounded in size and time, and all together in memory."""

import asyncio

from starlette.requests import Request

from llmserve.config.schema import ServerConfig
from llmserve.errors import CrowdedError, InvalidRequestError, RequestTimeoutError, TooLargeError
from llmserve.wire.validation import clipped

_FREE_BYTES = 64 << 10  # of each body: ordinary requests get through beside large ones
_NUM_LARGE = 16  # bodies of the largest size that there is memory for


class BodyTooLargeError(TooLargeError):
    """The rest of the body was not read, so the connection cannot be used again."""


class BodyTimeoutError(RequestTimeoutError):
    """The same, because it did not come."""


class BodyMemoryError(CrowdedError):
    """The same, because others send too much at this moment."""


CUT_OFF = (BodyTooLargeError, BodyTimeoutError, BodyMemoryError)


class Uploads:
    """The bodies that are on their way to one server."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self._free_bytes = _NUM_LARGE * server.max_body_bytes

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises one of `CUT_OFF`, as soon as it is known."""
        max_bytes = self._server.max_body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise _too_large(f"{int(declared)} bytes", max_bytes)
        try:
            async with asyncio.timeout(self._server.body_timeout):
                return await self._collect(request, max_bytes)
        except TimeoutError as error:
            raise BodyTimeoutError(
                f"the body must come within {self._server.body_timeout:g} s (body_timeout)"
            ) from error

    async def _collect(self, request: Request, max_bytes: int) -> bytes:
        body = bytearray()
        num_taken = 0  # of the bytes that all share
        try:
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(f"more than {len(body)} bytes", max_bytes)
                num_wanted = max(0, len(body) - _FREE_BYTES) - num_taken
                if num_wanted > self._free_bytes:
                    raise BodyMemoryError(
                        "too many large requests are being sent; try again", retry_after_s=5
                    )
                self._free_bytes -= num_wanted
                num_taken += num_wanted
            return bytes(body)
        finally:
            self._free_bytes += num_taken


async def read_body(request: Request) -> bytes:
    """The whole body of `request`. Raises one of `CUT_OFF`, and `InvalidRequestError`."""
    uploads: Uploads = request.app.state.uploads
    body = await uploads.read(request)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise InvalidRequestError(
            f"the body is encoded ({clipped(encoding)}), which this server does not undo; send it"
            " as it is, without Content-Encoding"
        )
    return body


def _too_large(size: str, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has {size}; this server takes at most {max_bytes}")
