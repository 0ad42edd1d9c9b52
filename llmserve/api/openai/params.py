"""The fields that several requests share -> core."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from llmserve import core
from llmserve.api.openai.errors import UnsupportedFieldError
from llmserve.api.openai.schemas import GenerationRequest, SamplingRequest
from llmserve.errors import InvalidRequestError

T = TypeVar("T")
TextOrTokens = str | tuple[int, ...]

NUM_SEEDS = 2**64


def sampling(wire: SamplingRequest) -> core.SamplingParams:
    """OpenAI's defaults: temperature 1, everything else off."""
    top_k = max(0, wire.top_k or 0)  # vLLM's -1 is our 0
    return core.SamplingParams(
        temperature=1.0 if wire.temperature is None else wire.temperature,
        top_p=1.0 if wire.top_p is None or wire.top_p == 0 else wire.top_p,
        top_k=1 if wire.top_p == 0 else top_k,  # no mass at all: the most likely token remains
        min_p=wire.min_p or 0.0,
        frequency_penalty=wire.frequency_penalty or 0.0,
        presence_penalty=wire.presence_penalty or 0.0,
        logit_bias=wire.logit_bias or {},
        ignore_eos=wire.ignore_eos or False,
    )


def seeds(wire: SamplingRequest, num_choices: int) -> list[int | None]:
    """A seed for each choice: consecutive, or all drawn if none is given.

    OpenAI's are signed, ours are not: -1 is the largest.
    """
    if wire.seed is None:
        return [None] * num_choices
    return [(wire.seed + i) % NUM_SEEDS for i in range(num_choices)]


def wants_usage(wire: GenerationRequest) -> bool:
    """Whether the stream ends with the usage. Raises `InvalidRequestError` if there is none."""
    if wire.stream_options is None:
        return False
    if not wire.stream:
        raise InvalidRequestError(
            "stream_options is given, but stream is not true", param="stream_options"
        )
    return bool(wire.stream_options.include_usage)


def refuse(
    wire: Struct, fields: Mapping[str, tuple[Any, ...]], *, prefix: str = "", reason: str = ""
) -> None:
    """Raises `UnsupportedFieldError`, with `reason`, for the first of `fields` that has a value.

    The values beside a field's name are as good as none.
    """
    for name, harmless in fields.items():
        value = getattr(wire, name)
        # As JSON has them: 0 is not false.
        if value is not None and (type(value), value) not in [(type(h), h) for h in harmless]:
            field = prefix + name.removesuffix("_")  # as in async_
            why = f": {reason}" if reason else ""
            raise UnsupportedFieldError(f"{field} is not supported{why}", param=field)


def texts_or_tokens(
    given: str | Sequence[str | int | list[int]], field: str, *, most: int
) -> list[TextOrTokens]:
    """A string, strings, token ids or lists of token ids, as one to `most` inputs.

    Raises `InvalidRequestError` that names `field`.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(_all_of(int, given, field))]
    if len(given) > most:
        raise InvalidRequestError(
            f"{field} has {len(given)} items; give at most {most}", param=field
        )
    if isinstance(given[0], str):
        return list(_all_of(str, given, field))
    return [tuple(tokens) for tokens in _all_of(list, given, field)]


def _all_of(kind: type[T], items: Sequence[object], field: str) -> list[T]:
    found = [item for item in items if isinstance(item, kind)]
    if len(found) < len(items):
        raise InvalidRequestError(
            f"{field} is mixed; give strings, token ids, or lists of token ids", param=field
        )
    return found
