"""POST /v1/embeddings."""

import asyncio
import base64
from collections.abc import AsyncGenerator

import msgspec
import numpy as np
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from llmserve.api.caller import Caller, caller_of
from llmserve.api.collect import send_body
from llmserve.api.endpoint import GENERATION, endpoint
from llmserve.api.http.decode import decode_body
from llmserve.api.http.upload import read_body
from llmserve.api.openai.params import texts_or_tokens
from llmserve.api.openai.schemas import (
    EmbeddingItem,
    EmbeddingList,
    EmbeddingsRequest,
    EmbeddingUsage,
)
from llmserve.api.streaming import Answer
from llmserve.core import EmbeddingRequest, Embeddings, Vectors

MAX_INPUTS = 2048  # OpenAI's


@endpoint(
    "POST",
    "/v1/embeddings",
    summary="A vector for each text",
    tag="OpenAI",
    body=EmbeddingsRequest,
    example={"input": ["Rivers shape land.", "Bread is old."]},
    answer=EmbeddingList,
    errors=GENERATION,
)
async def embeddings(request: Request) -> Response:
    wire = decode_body(await read_body(request), EmbeddingsRequest)
    return EmbeddingAnswer(
        caller_of(request), to_core(wire), is_base64=wire.encoding_format == "base64"
    )


def to_core(wire: EmbeddingsRequest) -> EmbeddingRequest:
    """Raises `InvalidRequestError`."""
    inputs = texts_or_tokens(wire.input, "input", most=MAX_INPUTS)
    return EmbeddingRequest(
        tuple(inputs), model=wire.model, dimensions=wire.dimensions, timeout_s=wire.timeout
    )


class EmbeddingAnswer(Answer):
    """All vectors in one body. A client that goes away cancels what is left to compute."""

    def __init__(self, caller: Caller, request: EmbeddingRequest, *, is_base64: bool) -> None:
        super().__init__(_embed(caller, request))
        self._is_base64 = is_base64

    async def _send(self, send: Send) -> None:
        found: Embeddings = await anext(self._events)
        # In a thread, row by row: millions of numbers would hold up the streams.
        await send_body(send, await asyncio.to_thread(render, found, is_base64=self._is_base64))


async def _embed(caller: Caller, request: EmbeddingRequest) -> AsyncGenerator[Embeddings, None]:
    yield await caller.embed(request)


def render(found: Embeddings, *, is_base64: bool) -> bytes:
    encode = _as_base64 if is_base64 else _as_numbers
    return msgspec.json.encode(
        EmbeddingList(
            data=[
                EmbeddingItem(index=index, embedding=encode(row))
                for index, row in enumerate(found.vectors)
            ],
            model=found.model,
            usage=EmbeddingUsage(found.prompt_tokens, found.prompt_tokens),
        )
    )


def _as_numbers(row: Vectors) -> Raw:
    return Raw(msgspec.json.encode(row.tolist()))


def _as_base64(row: Vectors) -> Raw:
    data = base64.b64encode(row.astype(np.dtype("<f4")).tobytes())
    return Raw(b'"' + data + b'"')
