"""What all answers of the dialect have in common: head, usage, the order of a stream.

A stream is, for each choice, its chunks and last one with a `finish_reason`; then, if asked for,
the usage with no choices; then `[DONE]`.
"""

import functools
import hashlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

import llmserve
from llmserve import core
from llmserve.api.openai.schemas import Body, CompletionTokensDetails, PromptTokensDetails, Usage
from llmserve.api.streaming import Indexed, sse_event
from llmserve.config.schema import ModelSpec
from llmserve.core import Finished, FinishReason, Part, Queued, Started
from llmserve.gateway import Gateway
from llmserve.wire.folding import Folded

DONE = sse_event(b"[DONE]")


class Head(Struct, frozen=True):
    """What one request's answer, or every chunk of it, says about itself."""

    id: str
    object: str
    created: int
    fingerprint: str

    def body(
        self, model: str, choices: list[Any], usage: Usage | UnsetType | None = UNSET
    ) -> bytes:
        return msgspec.json.encode(
            Body(
                id=self.id,
                object=self.object,
                created=self.created,
                model=model,
                system_fingerprint=self.fingerprint,
                choices=choices,
                usage=usage,
            )
        )


def make_head(gateway: Gateway, model: str | None, *, prefix: str, kind: str) -> Head:
    # An unknown name is refused with the first event, so its answer needs no fingerprint.
    spec = gateway.config.default if model is None else gateway.config.names.get(model)
    return Head(
        id=f"{prefix}-{secrets.token_hex(12)}",
        object=kind,
        created=int(time.time()),
        fingerprint=_fingerprint(spec) if spec else "",
    )


@functools.lru_cache(maxsize=256)
def _fingerprint(spec: ModelSpec) -> str:
    """Changes where the same request and seed might give another text."""
    digest = hashlib.sha256(f"{llmserve.__version__} {spec!r}".encode())
    return f"fp_{digest.hexdigest()[:12]}"


def finish_reason(reason: FinishReason) -> str:
    """An answer that the server's end cut short is "length": not whole, and no client knows more.

    OpenAI has no word for it, and strict clients take no others.
    """
    return str(reason) if reason in (FinishReason.STOP, FinishReason.TOOL_CALLS) else "length"


def total_usage(usages: Sequence[core.Usage], num_choices: int) -> Usage:
    """Of all generations, in their order: the prompt of each `num_choices` counts once.

    One of them may compute what the others share: what none had to compute is cached.
    """
    prompts = [usages[i : i + num_choices] for i in range(0, len(usages), num_choices)]
    num_prompt = sum(choices[0].prompt_tokens for choices in prompts)
    num_cached = sum(min(usage.cached_tokens for usage in choices) for choices in prompts)
    num_generated = sum(usage.generated_tokens for usage in usages)
    num_thought = sum(usage.reasoning_tokens for usage in usages)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_generated,
        total_tokens=num_prompt + num_generated,
        prompt_tokens_details=PromptTokensDetails(num_cached),
        completion_tokens_details=CompletionTokensDetails(num_thought) if num_thought else UNSET,
    )


def fold_body(head: Head, folded: list[Folded], choices: list[Any], num_choices: int) -> bytes:
    """The whole answer to a request with `num_choices` for each prompt."""
    usage = total_usage([f.finished.usage for f in folded], num_choices)
    return head.body(folded[0].started.model, choices, usage)


class StreamEncoder(ABC):
    """The events of all generations of one request -> its chunks."""

    def __init__(
        self, head: Head, *, num_prompts: int, num_choices: int, include_usage: bool
    ) -> None:
        self._head = head
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._usages: list[core.Usage | None] = [None] * (num_prompts * num_choices)
        self._models = [""] * len(self._usages)  # fallbacks may answer some of them

    def encode(self, item: Indexed) -> bytes:
        index, event = item
        match event:
            case Started():
                self._models[index] = event.model
                return self._chunk(index, self.start(index))
            case Queued():
                return b""
            case Finished():
                self._usages[index] = event.usage
                return self._chunk(index, self.finish(index, event)) + self._end()
            case _:
                return self._chunk(index, self.part(index, event))

    @abstractmethod
    def start(self, index: int) -> Struct | None:
        """The first choice struct of a generation, if it has something to say."""

    @abstractmethod
    def part(self, index: int, event: Part) -> Struct | None:
        """What a part of the answer has to say, if anything."""

    @abstractmethod
    def finish(self, index: int, event: Finished) -> Struct: ...

    def _chunk(self, index: int, choice: Struct | None) -> bytes:
        if choice is None:
            return b""
        # OpenAI's own chunks have a null there, once the usage is asked for.
        usage = None if self._include_usage else UNSET
        return sse_event(self._head.body(self._models[index], [choice], usage))

    def _end(self) -> bytes:
        """What follows the last choice's last chunk."""
        usages = [usage for usage in self._usages if usage]
        if len(usages) < len(self._usages):
            return b""
        if not self._include_usage:
            return DONE
        return (
            sse_event(self._head.body(self._models[0], [], total_usage(usages, self._num_choices)))
            + DONE
        )
