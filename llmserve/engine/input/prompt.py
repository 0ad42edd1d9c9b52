"""core.Request -> the text and the tokens that the model continues."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.mode import resolve_mode
from llmserve.chat.template import ChatTemplate
from llmserve.core import Message, Mode, Request
from llmserve.engine.kvcache.radix_tree import num_common
from llmserve.engine.runtime import ModelInfo, Runtime
from llmserve.engine.token_bounds import min_tokens
from llmserve.errors import InvalidRequestError, TooLargeError

MAX_TEXT_LEN = 2 << 20  # characters of a text that POST /tokenize takes; a second or two
_FIRST_LEN = 8 * 1024  # characters of a text without bound that are tokenized first

log = logging.getLogger(__name__)

USER_BEGINS = ("a", "Z", "0", " a", "\n\na", "(", "é", "漢")


class Prompt(NamedTuple):
    tokens: list[int]
    conversation: str | None = None  # what the chat template made of it, where it did


def load_style(info: ModelInfo) -> ChatStyle | None:
    """How the model converses; None if it cannot. A broken template refuses when it is used."""
    if not info.chat_template:
        return None
    template = ChatTemplate(info.chat_template, bos_text=info.bos_text, eos_text=info.eos_text)
    template.attempt([Message("user", "Hello")])
    if template.fault is not None:
        log.warning("the chat template is broken, only completion works: %s", template.fault)
    return ChatStyle(template)


def build_text(request: Request, mode: Mode, style: ChatStyle | None) -> str:
    """The text that the model continues."""
    if mode is Mode.COMPLETION:
        assert request.prompt is not None
        return request.prompt
    assert style is not None
    variables = style.variables(request.reasoning_effort, request.template_variables)
    if mode is Mode.CHAT:
        assert request.messages is not None
        return style.render(request.messages, request.tool_use, variables)
    assert request.prompt is not None
    system = () if request.system is None else (Message("system", request.system),)
    return style.render((*system, Message("user", request.prompt)), variables=variables)


def encode(
    request: Request, runtime: Runtime, style: ChatStyle | None, default_mode: Mode | None
) -> Prompt:
    """The prompt's tokens, with room for at least one more in the context.

    Tokens are taken as they are: no BOS is added. Runs off the event loop. Raises
    `InvalidRequestError` and `TooLargeError`.
    """
    mode = resolve_mode(request, default_mode, has_template=style is not None)
    if request.suffix is not None:
        return Prompt(_encode_infill(request, request.suffix, runtime))
    if request.prompt_tokens is not None:
        return Prompt(_check_tokens(request.prompt_tokens, runtime))
    text = build_text(request, mode, style)
    bos = runtime.info.bos_text
    # Most templates write BOS themselves, and a second one degrades the answer.
    has_bos = mode is not Mode.COMPLETION and bool(bos) and text.startswith(bos)
    field = "messages" if mode is Mode.CHAT else "prompt"
    with valid_unicode(field, param=field):
        tokens = _tokenize_prompt(field, text, runtime, add_special=not has_bos)
    if not tokens:
        raise InvalidRequestError(f"{field} is empty; give at least one character", param=field)
    if len(tokens) >= runtime.limits.context_length:
        raise _too_long(field, f"{len(tokens)}", runtime)
    return Prompt(tokens, None if mode is Mode.COMPLETION else text)


def system_prefix(system: str, runtime: Runtime, style: ChatStyle | None) -> list[int]:
    """What all conversations with this system message begin with.

    Whatever the user says: by its first character too, with which the template's last one may be
    one token. Raises what `encode` raises.
    """
    if not runtime.info.generates:
        raise InvalidRequestError("the model generates no text")
    conversations = [
        encode(
            Request(messages=(Message("system", system), Message("user", begin))),
            runtime,
            style,
            Mode.CHAT,
        ).tokens
        for begin in USER_BEGINS
    ]
    first = conversations[0]
    return first[: min(num_common(first, other) for other in conversations[1:])]


def _encode_infill(request: Request, suffix: str, runtime: Runtime) -> list[int]:
    """Prefix, suffix, and then the model writes the middle: the order of llama-server's /infill.

    In both texts special tokens are nothing but characters.
    """
    infill = runtime.info.infill
    if infill is None:
        raise InvalidRequestError(
            "suffix needs a model that can fill in the middle; this one has no tokens for that",
            param="suffix",
        )
    if request.prompt_tokens is None:
        assert request.prompt is not None, "suffix goes with mode completion"
        before = _tokenize_part("prompt", request.prompt, runtime)
    else:
        before = _check_tokens(request.prompt_tokens, runtime)
    after = _tokenize_part("suffix", suffix, runtime)
    bos = runtime.tokenize("", add_special=True)[:1] if runtime.info.adds_bos else []
    tokens = [*bos, infill.prefix, *before, infill.suffix, *after, infill.middle]
    if len(tokens) >= runtime.limits.context_length:
        raise _too_long("prompt", f"{len(tokens)}", runtime)  # with the suffix
    return tokens


def _tokenize_part(field: str, text: str, runtime: Runtime) -> list[int]:
    with valid_unicode(field, param=field):
        return _tokenize_prompt(field, text, runtime, add_special=False, parse_special=False)


def _tokenize_prompt(
    field: str, text: str, runtime: Runtime, *, add_special: bool, parse_special: bool = True
) -> list[int]:
    _check_hopeless(text, runtime, field)

    def too_long(num_tokens: int) -> TooLargeError:
        return _too_long(field, f"at least {num_tokens}", runtime)

    context_length = runtime.limits.context_length
    if runtime.info.max_token_bytes is None:
        check_beginning(text, runtime, _FIRST_LEN, context_length, too_long)
    return runtime.tokenize(text, add_special=add_special, parse_special=parse_special)


def check_beginning(
    text: str,
    runtime: Runtime,
    size: int,
    max_len: int,
    too_long: Callable[[int], TooLargeError],
) -> None:
    """Refuse a text that is much too long by its beginning, of `size` characters and then more.

    llama.cpp can take minutes for all of it: its time grows with the square of the number of
    special tokens.
    """
    while size < len(text):
        num_tokens = len(runtime.tokenize(text[:size], add_special=False))
        if num_tokens > max_len:
            raise too_long(num_tokens)
        size *= 2


def tokenize(text: str, runtime: Runtime, *, add_special: bool) -> list[int]:
    """The tokens of a bare text.

    Raises `InvalidRequestError` for a lone surrogate, `TooLargeError` for what would take long.
    """
    if len(text) > MAX_TEXT_LEN:
        raise TooLargeError(
            f"the text has {len(text)} characters; give at most {MAX_TEXT_LEN}, or split it"
        )
    with valid_unicode("the text"):
        return runtime.tokenize(text, add_special=add_special)


def detokenize(tokens: Sequence[int], runtime: Runtime) -> str:
    """The text of `tokens`. Raises `InvalidRequestError` for one that the model does not have."""
    check_vocabulary(tokens, runtime, "tokens[{}]")
    return runtime.detokenize(tokens).decode(errors="replace")


def render(request: Request, style: ChatStyle | None) -> str:
    """The text of a conversation. Raises `InvalidRequestError` if the model has no template."""
    if style is None:
        raise InvalidRequestError("the model has no chat template", param="messages")
    return build_text(request, Mode.CHAT, style)


@contextlib.contextmanager
def valid_unicode(what: str, param: str | None = None) -> Iterator[None]:
    """A text that has no UTF-8 is a refusal, wherever it is first encoded."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{what} is not valid Unicode: it has half of a surrogate pair", param=param
        ) from error


def _check_tokens(tokens: tuple[int, ...], runtime: Runtime) -> list[int]:
    """One that is not in the vocabulary would fail the step of everybody in its batch."""
    if not tokens:
        raise InvalidRequestError("prompt is empty; give at least one token", param="prompt")
    if len(tokens) >= runtime.limits.context_length:
        raise _too_long("prompt", f"{len(tokens)}", runtime)
    check_vocabulary(tokens, runtime, "prompt.{}")
    return list(tokens)


def check_vocabulary(tokens: Sequence[int], runtime: Runtime, param: str) -> None:
    """`param` names the field of a token, with {} for its index."""
    vocab_size = runtime.info.vocab_size
    for index, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"token {token} at index {index} is not in the vocabulary of {vocab_size} tokens",
                param=param.format(index),
            )


def _check_hopeless(text: str, runtime: Runtime, field: str) -> None:
    """Refuse what cannot fit however it is tokenized, which would take seconds to find out."""
    info, context_length = runtime.info, runtime.limits.context_length
    # A character has at most four bytes: most prompts need not even be encoded.
    if info.max_token_bytes is None or 4 * len(text) < context_length * info.max_token_bytes:
        return
    num_tokens = min_tokens(text, info.max_token_bytes, info.lost_bytes)
    if num_tokens >= context_length:
        raise _too_long(field, f"at least {num_tokens}", runtime)


def _too_long(field: str, num_tokens: str, runtime: Runtime) -> TooLargeError:
    return TooLargeError(
        f"{field} has {num_tokens} tokens; the context of this model holds"
        f" {runtime.limits.context_length}, one of which the answer needs; shorten it",
        param=field,
    )
