"""core.EmbeddingRequest -> tokens, and raw vectors -> those of the answer."""

from collections.abc import Sequence

import numpy as np

from llmserve.core import EmbeddingRequest, Vectors
from llmserve.engine.input import prompt
from llmserve.engine.runtime import EmbeddingLimits, Runtime
from llmserve.engine.token_bounds import min_tokens
from llmserve.errors import InvalidRequestError, TooLargeError

MAX_TOKENS = 300_000  # of all inputs of one request, as OpenAI's
_LIKELY_CHARACTERS = 8  # of one token; a text of so many each may still have few tokens


def encode(request: EmbeddingRequest, runtime: Runtime, limits: EmbeddingLimits) -> list[list[int]]:
    """The tokens of each input, none empty or longer than the model takes.

    A text gets the special tokens that its model puts around one; token ids are taken as they
    are. Runs off the event loop. Raises `InvalidRequestError` and `TooLargeError`.
    """
    _check_dimensions(request.dimensions, limits)
    if not request.inputs:
        raise InvalidRequestError("input is an empty list; give at least one text", param="input")
    inputs = []
    num_tokens = 0
    for index, given in enumerate(request.inputs):
        name = f"input[{index}]" if len(request.inputs) > 1 else "input"
        tokens = _tokens(given, name, runtime, limits)
        num_tokens += len(tokens)
        if num_tokens > MAX_TOKENS:
            raise InvalidRequestError(
                f"the inputs have more than {MAX_TOKENS} tokens in all; send them in several"
                " requests",
                param="input",
            )
        inputs.append(tokens)
    return inputs


def normalized(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Each row cut to `dimensions`, of length 1; a row of zeros stays one."""
    vectors = vectors[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return unit


def _tokens(
    given: str | Sequence[int], name: str, runtime: Runtime, limits: EmbeddingLimits
) -> list[int]:
    if not given:  # some models would still put special tokens around it
        raise InvalidRequestError(f"{name} is empty; give at least one character", param=name)
    if isinstance(given, str):
        _check_hopeless(given, name, runtime, limits)
        with prompt.valid_unicode(name, param=name):
            tokens = _tokenize(given, name, runtime, limits)
    else:
        prompt.check_vocabulary(given, runtime, name)
        tokens = list(given)
    if not tokens:
        raise InvalidRequestError(f"{name} has no token; give other text", param=name)
    if len(tokens) > limits.max_len:
        raise _too_long(name, f"{len(tokens)}", limits)
    return tokens


def _tokenize(text: str, name: str, runtime: Runtime, limits: EmbeddingLimits) -> list[int]:
    """The vocabularies of encoders have no bound as `_check_hopeless` needs it."""
    prompt.check_beginning(
        text,
        runtime,
        _LIKELY_CHARACTERS * limits.max_len,
        limits.max_len,
        lambda num_tokens: _too_long(name, f"at least {num_tokens}", limits),
    )
    return runtime.tokenize(text, add_special=True)


def _check_dimensions(dimensions: int | None, limits: EmbeddingLimits) -> None:
    if dimensions is not None and not 1 <= dimensions <= limits.num_dimensions:
        raise InvalidRequestError(
            f"dimensions is {dimensions}; this model has {limits.num_dimensions}, give 1 to that",
            param="dimensions",
        )


def _check_hopeless(text: str, name: str, runtime: Runtime, limits: EmbeddingLimits) -> None:
    """Refuse what cannot fit however it is tokenized, which would take seconds to find out."""
    info = runtime.info
    if info.max_token_bytes is None or 4 * len(text) <= limits.max_len * info.max_token_bytes:
        return
    with prompt.valid_unicode(name, param=name):
        num_tokens = min_tokens(text, info.max_token_bytes, info.lost_bytes)
    if num_tokens > limits.max_len:
        raise _too_long(name, f"at least {num_tokens}", limits)


def _too_long(name: str, num_tokens: str, limits: EmbeddingLimits) -> TooLargeError:
    return TooLargeError(
        f"{name} has {num_tokens} tokens; this model embeds at most {limits.max_len} at once;"
        " shorten or split it",
        param=name,
    )
