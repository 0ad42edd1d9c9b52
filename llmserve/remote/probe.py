"""Is a provider there, does it take the key, has it the model? One step after the other."""

import asyncio
import contextlib
import difflib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2
import msgspec
from msgspec import Struct

from llmserve.config.provider import Retry
from llmserve.config.schema import ModelSpec
from llmserve.core import Delta, Finished, ReasoningDelta, Request
from llmserve.errors import LlmserveError, ProviderError, ProviderModelError
from llmserve.remote.client import read_bounded
from llmserve.remote.errors import UNREADABLE, from_status, from_transport, reason
from llmserve.remote.model import RemoteModel
from llmserve.remote.remotes import Remotes

STEP_S = 10.0
MAX_LIST_BYTES = 4 << 20
MAX_TOKENS = 16
PROMPT = "Say hello."


class Step(Struct, frozen=True):
    name: str
    told: str
    is_ok: bool = True


async def probe(
    spec: ModelSpec, url: str, remotes: Remotes, *, is_proxied: bool
) -> AsyncIterator[Step]:
    """The steps at one address of `spec`, up to the first that fails."""
    assert spec.remote
    remote = msgspec.structs.replace(spec.remote, urls=(url,), retry=Retry(attempts=1))
    model = remotes.model(msgspec.structs.replace(spec, remote=remote))
    parts = urlsplit(url)
    try:
        if is_proxied:
            yield Step("connection", "through the proxy of the environment")
        else:
            yield Step("name", await _resolve(parts))
            yield Step("connection", await _connect(parts, await _ssl_context(parts)))
        yield await _look_up(model, url)
        yield Step("answer", await _ask(model))
    except LlmserveError as error:
        yield Step("failed", error.message, is_ok=False)


async def _resolve(parts: SplitResult) -> str:
    assert parts.hostname
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(STEP_S):
            found = await loop.getaddrinfo(parts.hostname, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise ProviderError(
            f"the name {parts.hostname} is not known ({_words(error)}); check how it is spelled,"
            " and whether there is a network"
        ) from error
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    return f"{parts.hostname} is {', '.join(addresses)}"


async def _connect(parts: SplitResult, context: ssl.SSLContext | None) -> str:
    """TCP, then TLS where there is to be some."""
    port = parts.port or (443 if context else 80)
    where = f"{parts.hostname}, port {port}"
    try:
        async with asyncio.timeout(STEP_S):
            _, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        raise ProviderError(
            f"the certificate of {where} is not valid: {error.verify_message}; if it is your own,"
            " name its authority in SSL_CERT_FILE"
        ) from error
    except ssl.SSLError as error:
        raise ProviderError(f"no TLS with {where}: {error.reason}; is it http?") from error
    except (OSError, TimeoutError) as error:
        raise ProviderError(f"no connection to {where}: {_words(error)}") from error
    version = writer.get_extra_info("ssl_object")
    told = f"{where}, {version.version()}" if version else f"{where}, not encrypted"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return told


async def _ssl_context(parts: SplitResult) -> ssl.SSLContext | None:
    if parts.scheme != "https":
        return None
    return await asyncio.to_thread(httpx2.create_ssl_context)


async def _look_up(model: RemoteModel, url: str) -> Step:
    """Key and model, as far as the provider's list of models tells."""
    (address,) = model.addresses.all
    asked = model.asked(address, "/models")
    link = await model.link()
    try:
        async with asyncio.timeout(STEP_S):
            response = await link.send("GET", url + "/models")
            try:
                body = await read_bounded(response, MAX_LIST_BYTES)
            finally:
                await link.release(response)
    except httpx2.HTTPError as error:
        raise from_transport(asked, error, is_connected=False).error from error
    except TimeoutError as error:
        raise ProviderError(asked.text(f"did not answer for {STEP_S:g} s")) from error
    if response.status_code in (401, 403):
        raise from_status(asked, response.status_code, response.headers, body).error
    names = _names(body)
    if names is None:
        return Step("model", "the provider has no list of models")
    wanted = model.remote_model
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=5) or names[:5]
        raise ProviderModelError(
            asked.text(f"has no model {wanted!r}, but {', '.join(close) or 'none at all'};")
            + " set remote_model"
        )
    return Step("model", f"{wanted} is there")


def _names(body: bytes) -> list[str] | None:
    try:
        models: Any = msgspec.json.decode(body)
        return [str(each["id"]) for each in models["data"]]
    except (*UNREADABLE, LookupError, TypeError):
        return None


async def _ask(model: RemoteModel) -> str:
    """A few words, as a request would get them."""
    text = ""
    request = Request(prompt=PROMPT, max_tokens=MAX_TOKENS)
    async with contextlib.aclosing(model.generate(request)) as events:
        async for event in events:
            match event:
                case Delta(words) | ReasoningDelta(words):
                    text += words
                case Finished(timings=timings):
                    return f"{text.strip()[:60]!r}, first token after {timings.ttft_s:.2f} s"
    raise AssertionError("every answer ends")


def _words(error: BaseException) -> str:
    return "out of time" if isinstance(error, TimeoutError) else reason(error)
