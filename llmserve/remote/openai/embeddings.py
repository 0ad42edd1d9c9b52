"""POST /embeddings of the OpenAI protocol: a request as bytes, and an answer as vectors. No I/O."""

import base64
import binascii

import msgspec
import numpy as np
from msgspec import Struct

from llmserve.core import EmbeddingRequest, Vectors
from llmserve.remote.errors import UNREADABLE, BrokenAnswerError
from llmserve.remote.protocol import Call, encode_body


class _Item(Struct):
    index: int
    embedding: str | list[float]  # a string: base64 of little-endian float32


class _Usage(Struct):
    prompt_tokens: int | None = None


class _Answer(Struct):
    data: list[_Item]
    usage: _Usage | None = None


def encode(request: EmbeddingRequest, remote_model: str) -> Call:
    """Raises `InvalidRequestError` for half of a surrogate pair."""
    body: dict[str, object] = {
        "model": remote_model,
        "input": request.inputs,
        "encoding_format": "base64",  # a third of the bytes, and quick to read
    }
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return Call("/embeddings", encode_body(body))


def decode(body: bytes, request: EmbeddingRequest) -> tuple[Vectors, int]:
    """Vectors of length 1 in the order of the inputs, and the tokens of all inputs.

    Raises `BrokenAnswerError`. Takes a while for many; use a thread.
    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        rows = {item.index: _row(item.embedding) for item in answer.data}
        vectors = np.stack([rows[index] for index in range(len(request.inputs))])
    except (*UNREADABLE, binascii.Error, ValueError) as error:
        raise BrokenAnswerError(f"sent embeddings that cannot be read: {error}") from error
    except KeyError as error:
        raise BrokenAnswerError(f"sent no embedding of input {error.args[0]}") from error
    if request.dimensions not in (None, vectors.shape[1]):
        raise BrokenAnswerError(
            f"sent {vectors.shape[1]} dimensions where {request.dimensions} were asked for"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise BrokenAnswerError("sent an embedding without a direction")
    usage = answer.usage or _Usage()
    return vectors / lengths, usage.prompt_tokens or 0


def _row(wire: str | list[float]) -> Vectors:
    if isinstance(wire, list):
        return np.array(wire, dtype=np.float32)
    data = base64.b64decode(wire, validate=True)
    return np.frombuffer(data, dtype="<f4").astype(np.float32)
