"""System prompts that are to be kept -> the tokens of their prefixes."""

import logging
from collections.abc import Iterable

from msgspec import Struct

from llmserve.chat.chat_format import ChatStyle
from llmserve.engine.input.prompt import system_prefix
from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.kvcache.manager import MIN_PREFIX
from llmserve.engine.runtime import Runtime
from llmserve.errors import LlmserveError

log = logging.getLogger(__name__)


class PinOptions(Struct, frozen=True):
    """System messages to pin, and where they outlive the process."""

    prompts: tuple[str, ...] = ()
    disk: DiskOptions | None = None


class Pin(Struct, frozen=True):
    name: str  # for the log
    tokens: list[int]  # what every conversation with it begins with


def make_pins(
    model: str, prompts: Iterable[str], runtime: Runtime, style: ChatStyle | None
) -> list[Pin]:
    """Render and tokenize; what cannot be pinned is told to the log. Off the event loop."""
    pins = []
    for index, prompt in enumerate(prompts):
        name = f"models.{model}.pinned_prompts[{index}]"
        try:
            tokens = system_prefix(prompt, runtime, style)
        except LlmserveError as error:
            log.warning("%s is not kept: %s", name, error.message)
            continue
        if len(tokens) < MIN_PREFIX:
            log.warning("%s is not kept: it has %d tokens, which is little", name, len(tokens))
        else:
            pins.append(Pin(name, tokens))
    return pins
