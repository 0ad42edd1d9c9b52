"""Sends one request as a patient client would, or as one that goes away in the middle."""

import asyncio
import time

import httpx2
import msgspec

from tests.bench.soak.asks import Ask, Leave
from tests.bench.soak.replies import Reply, read_body, read_error, read_event

# As an event of a stream: with several choices, one may have begun when another cannot.
_TEMPORARY = ("engine_crashed", "model_loading")
_MAX_PAUSE_S = 5.0  # before another try, whatever Retry-After says


def http_client(url: str) -> httpx2.AsyncClient:
    """Connections are kept, but shorter than by the server, which closes idle ones after 5 s."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=2)
    return httpx2.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def answer(client: httpx2.AsyncClient, ask: Ask, *, deadline_s: float) -> list[Reply]:
    """Every try of `ask`: after 429, 503 and a crash it is asked again. The last one counts."""
    replies: list[Reply] = []
    end_s = time.perf_counter() + deadline_s
    while True:
        reply = await attempt(client, ask, end_s)
        replies.append(reply)
        is_temporary = reply.status in (429, 503) or reply.error in _TEMPORARY
        if reply.has_left or not is_temporary:
            return replies
        pause_s = min(_MAX_PAUSE_S, max(0.1, reply.retry_after_s or 0.0))
        if time.perf_counter() + pause_s > end_s:
            return replies
        await asyncio.sleep(pause_s)


async def attempt(client: httpx2.AsyncClient, ask: Ask, end_s: float) -> Reply:
    """One try, until `end_s` on the clock of `time.perf_counter`."""
    reply = Reply(time.perf_counter())
    leave = ask.leave or Leave()
    leave_s = None if leave.after_s is None else reply.begin_s + leave.after_s
    limit_s = min(end_s, leave_s or end_s) - time.perf_counter()
    try:
        async with asyncio.timeout(limit_s):
            await _exchange(client, ask, reply, leave.after_pieces)
        if not (reply.is_whole or reply.error or reply.has_left):
            reply.error, reply.message = "cut off", f"after {len(reply.arrivals_s)} pieces"
    except TimeoutError:
        reply.has_left = leave_s is not None and leave_s < end_s
        if not reply.has_left:
            reply.error, reply.message = "deadline", f"after {len(reply.arrivals_s)} pieces"
    except httpx2.TransportError as error:
        reply.error, reply.message = "connection", f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        reply.error, reply.message = "malformed", f"{type(error).__name__}: {error}"
    reply.end_s = time.perf_counter()
    return reply


async def _exchange(
    client: httpx2.AsyncClient, ask: Ask, reply: Reply, after_pieces: int | None
) -> None:
    async with client.stream("POST", ask.route, json=ask.body) as response:
        reply.status = response.status_code
        if retry_after := response.headers.get("retry-after"):
            reply.retry_after_s = float(retry_after)
        if reply.status != 200:
            read_error(reply, await response.aread())
        elif not ask.is_stream:
            read_body(reply, ask.route, await response.aread())
        else:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if read_event(reply, ask.route, line[6:]):
                    reply.arrivals_s.append(time.perf_counter())
                    if len(reply.arrivals_s) == after_pieces:
                        reply.has_left = True
                        return
