"""One provider over HTTP: a pooled client, and one attempt at a time. All bounds are here.

Every wait has a deadline of ours, so that the same clock serves the first byte, the silence
between two, the whole answer and the end of the server.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Self

import httpx2

from llmserve.core import Part
from llmserve.errors import InvalidRequestError, ProviderTimeoutError
from llmserve.remote.errors import (
    Asked,
    AttemptError,
    BrokenAnswerError,
    ErrorInStreamError,
    broken,
    from_status,
    from_stream,
    from_transport,
    too_late,
)
from llmserve.remote.http2 import mend
from llmserve.remote.protocol import Bounds, Call, Decoder, Ending
from llmserve.remote.retry import Failure
from llmserve.remote.sse import SseReader, SseTooLongError

MAX_ERROR_BYTES = 64 << 10
LINGER_S = 0.2  # for the end of a response whose last event has come
LANE_SIZE = 16  # requests of one client at the same time
KEEP_ALIVE_S = 60.0  # an idle connection: another one costs a TLS handshake


# At debug they write every header, and the key is one.
for _name in ("hpack", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.INFO)
mend()


class _Lane:
    """A client of httpx2 and how many requests it has now."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.num_active = 0


class Link:
    """The connection to one provider, all of its addresses. Used and closed on one event loop.

    httpx2's pool looks at all of its connections for every request, which for 64 of them takes
    longer than the request. So there are several pools, each used when those before are full.
    """

    def __init__(
        self,
        headers: dict[str, str],
        *,
        silence_s: float,
        ssl_context: ssl.SSLContext,
        uses_proxies: bool,
        bounds: Bounds,
    ) -> None:
        """`silence_s` is how long a provider may say nothing within an answer."""
        self.silence_s = silence_s
        self.bounds = bounds
        self._headers = headers
        self._ssl_context = ssl_context
        self._uses_proxies = uses_proxies
        self._urls: dict[str, httpx2.URL] = {}
        self._lanes = [self._make_lane()]
        self._lane_of: dict[httpx2.Response, _Lane] = {}

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """The head of the answer. The caller gives it back to `release`."""
        lane = self._free_lane()
        lane.num_active += 1
        try:
            request = lane.client.build_request(
                method, self._parse(url), content=body, headers=headers
            )
            response = await lane.client.send(request, stream=True)
        except BaseException:
            lane.num_active -= 1
            raise
        self._lane_of[response] = lane
        return response

    async def release(self, response: httpx2.Response) -> None:
        """Close it, and with it the request, if it has not ended."""
        self._lane_of.pop(response).num_active -= 1
        await response.aclose()

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.client.aclose()

    def _free_lane(self) -> _Lane:
        for lane in self._lanes:
            if lane.num_active < LANE_SIZE:
                return lane
        self._lanes.append(self._make_lane())
        return self._lanes[-1]

    def _make_lane(self) -> _Lane:
        return _Lane(
            httpx2.AsyncClient(
                headers=self._headers,
                verify=self._ssl_context,
                http2=True,
                trust_env=self._uses_proxies,
                timeout=httpx2.Timeout(None, connect=self.bounds.connect_s),
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            )
        )

    def _parse(self, url: str) -> httpx2.URL:
        """There are a few of them, and each takes as long as the rest of a request."""
        if url not in self._urls:
            self._urls[url] = httpx2.URL(url)
        return self._urls[url]


class OpenAnswer:
    """An answer whose first part is there. Close it, and the provider stops generating."""

    def __init__(
        self, response: httpx2.Response, link: Link, decoder: Decoder, asked: Asked
    ) -> None:
        self._response = response
        self._chunks = response.aiter_raw()
        self._link = link
        self._decoder = decoder
        self._asked = asked
        self._reader = SseReader(link.bounds.event_bytes)
        self._num_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + link.bounds.answer_s
        self._waiting: asyncio.Timeout | None = None
        self._is_cancelled = False
        self._parts: list[Part] = []  # decoded and not yet given out
        self._is_over = False

    @classmethod
    async def begin(cls, link: Link, url: str, call: Call, decoder: Decoder, asked: Asked) -> Self:
        """Ask, and wait for the first part. Raises `AttemptError`. The caller has a deadline."""
        response: httpx2.Response | None = None
        answer: Self | None = None
        try:
            response = await link.send("POST", url + call.path, call.body, call.headers)
            await _check_head(response, asked, "text/event-stream")
            answer = cls(response, link, decoder, asked)
            await answer._fill()
        except BaseException as error:
            if answer is not None:
                await answer.close()
            elif response is not None:
                await link.release(response)
            if (told := _explain(error, asked, is_connected=response is not None)) is None:
                raise
            raise told from error
        return answer

    async def parts(self) -> AsyncGenerator[Part, None]:
        """All parts. Raises `LlmserveError`; `cancel` ends them early."""
        try:
            while self._parts and not self._is_cancelled:
                parts, self._parts = self._parts, []
                for part in parts:
                    yield part
                await self._refill()
        except ErrorInStreamError as error:
            raise too_late(self._asked, error) from error
        except (BrokenAnswerError, SseTooLongError, httpx2.HTTPError) as error:
            told = _explain(error, self._asked, is_connected=True)
            assert told
            raise told.error from error

    def ending(self) -> Ending | None:
        """After all parts; None if `cancel` cut them short."""
        return None if self._is_cancelled else self._decoder.end()

    def cancel(self) -> None:
        """End the wait for the next part."""
        self._is_cancelled = True
        if self._waiting and not self._waiting.expired():
            self._waiting.reschedule(0)

    async def close(self) -> None:
        """At its end, read what ends the response, so that the connection can be used again."""
        try:
            if self._decoder.is_done:
                with contextlib.suppress(TimeoutError, httpx2.HTTPError):
                    async with asyncio.timeout(LINGER_S):
                        while await anext(self._chunks, None) is not None:
                            pass
        finally:
            await self._chunks.aclose()
            await self._link.release(self._response)

    async def _refill(self) -> None:
        """The next parts; none at the end."""
        silence_s = self._link.silence_s
        until_s = min(self._loop.time() + silence_s, self._end_s)
        try:
            async with asyncio.timeout_at(until_s) as self._waiting:
                await self._fill()
        except TimeoutError as error:
            if self._is_cancelled:
                return
            bounds = self._link.bounds
            what = f"sent nothing for {silence_s:g} s"
            if until_s == self._end_s:
                what = f"has not ended its answer after {bounds.answer_s:g} s"
            raise ProviderTimeoutError(self._asked.text(what)) from error
        finally:
            self._waiting = None

    async def _fill(self) -> None:
        """Read until there is a part, or the end."""
        while not self._parts and not self._is_over:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._is_over = True
                self._decoder.end()  # raises for half an answer
                return
            self._num_bytes += len(chunk)
            if self._num_bytes > self._link.bounds.answer_bytes:
                raise _too_much(self._link)
            self._parts.extend(self._decode(chunk))

    def _decode(self, chunk: bytes) -> Iterator[Part]:
        for event in self._reader.push(chunk):
            yield from self._decoder.push(event)
            if self._decoder.is_done:
                self._is_over = True
                self._decoder.end()
                return


async def fetch(link: Link, url: str, call: Call, asked: Asked) -> bytes:
    """A whole answer in JSON. Raises `AttemptError`. The caller has a deadline."""
    response: httpx2.Response | None = None
    try:
        response = await link.send("POST", url + call.path, call.body, call.headers)
        await _check_head(response, asked, "application/json")
        body = await read_bounded(response, link.bounds.answer_bytes + 1)
        if len(body) > link.bounds.answer_bytes:
            raise _too_much(link)
    except BaseException as error:
        if (told := _explain(error, asked, is_connected=response is not None)) is None:
            raise
        raise told from error
    finally:
        if response is not None:
            await link.release(response)
    return body


def _too_much(link: Link) -> BrokenAnswerError:
    return BrokenAnswerError(f"sent more than {link.bounds.answer_bytes} bytes for one answer")


async def _check_head(response: httpx2.Response, asked: Asked, wanted: str) -> None:
    """Raises `AttemptError` unless an answer of that type follows."""
    if response.status_code != 200:
        body = await read_bounded(response, MAX_ERROR_BYTES)
        raise from_status(asked, response.status_code, response.headers, body)
    kind = response.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
    if kind != wanted:
        raise BrokenAnswerError(f"answered with {kind[:80]} instead of {wanted}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise BrokenAnswerError("compressed its answer, which it was not asked to")


async def read_bounded(response: httpx2.Response, max_bytes: int) -> bytes:
    """The body, or its beginning."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def _explain(error: BaseException, asked: Asked, *, is_connected: bool) -> AttemptError | None:
    """What ended an attempt or an answer; None for what is not the provider's doing."""
    match error:
        case AttemptError():
            return error
        case InvalidRequestError():  # of the decoder: a field is not honoured
            return AttemptError(error, Failure(is_final=True), is_outage=False)
        case ErrorInStreamError():
            return from_stream(asked, error)
        case BrokenAnswerError():
            return broken(asked, error)
        case SseTooLongError():
            return broken(asked, BrokenAnswerError("sent an event that is too long"))
        case httpx2.HTTPError():
            return from_transport(asked, error, is_connected=is_connected)
        case _:
            return None
