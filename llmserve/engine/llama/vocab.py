"""The vocabulary of a model of llama.cpp, which never changes: any thread may use all of this."""

import ctypes
import functools
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
from msgspec.structs import astuple

from llmserve.engine.runtime import InfillTokens, ModelInfo
from llmserve.engine.token_bounds import TokenBound, measure
from llmserve.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def tokenize(
    vocab: lib.llama_vocab_p, text: str, add_special: bool, parse_special: bool
) -> list[int]:
    """The tokens of `text`, in one call. Raises `EngineError`."""
    data = text.encode()
    room = len(data) + 2  # most vocabularies need no more than a token a byte, and BOS
    while True:
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(vocab, data, len(data), tokens, room, add_special, parse_special)
        if count >= 0:
            return list(tokens[:count])
        if -count <= room:
            raise EngineError(f"llama_tokenize failed on {len(data)} bytes")
        room = -count


def token_to_piece(vocab: lib.llama_vocab_p, token: int, *, special: bool) -> bytes:
    """The bytes of `token`; those of control tokens only if `special`."""
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if length >= 0:
            return buffer.raw[:length]
        size = -length


def make_grammar_tokenizer(vocab: lib.llama_vocab_p, info: ModelInfo) -> "LLTokenizer":
    """llguidance's table of the tokens."""
    from llguidance import LLTokenizer

    # As in llguidance.llamacpp, but that control tokens have no text, like in our answers.
    tokens = [token_to_piece(vocab, token, special=False) for token in range(info.vocab_size)]
    tokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens,
        vocab_ptr=vocab,
        tokenize_fptr=ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value,
        eos_token=sorted(info.eog_tokens),
        slices=[],
    )
    # A call of its own: each one holds the interpreter lock, and so the running streams.
    sliced: LLTokenizer = tokenizer.with_slices(LLTokenizer.json_slices())
    return sliced


def model_info(model: lib.llama_model_p, vocab: lib.llama_vocab_p) -> ModelInfo:
    vocab_size = lib.llama_vocab_n_tokens(vocab)
    description = ctypes.create_string_buffer(256)
    lib.llama_model_desc(model, description, len(description))
    template = lib.llama_model_chat_template(model, None)
    tokenizer = _tokenizer_kind(model)
    bound = _token_bound(tokenizer, vocab)
    return ModelInfo(
        description=description.value.decode(errors="replace"),
        vocab_size=vocab_size,
        eog_tokens=frozenset(t for t in range(vocab_size) if lib.llama_vocab_is_eog(vocab, t)),
        bos_text=_special_text(vocab, lib.llama_vocab_bos(vocab)),
        eos_text=_special_text(vocab, lib.llama_vocab_eos(vocab)),
        chat_template=template.decode(errors="replace") if template else None,
        max_token_bytes=bound.max_token_bytes if bound else None,
        lost_bytes=bound.lost_bytes if bound else b"",
        tokenizer=tokenizer,
        adds_bos=lib.llama_vocab_get_add_bos(vocab),
        infill=_infill_tokens(vocab),
    )


def _infill_tokens(vocab: lib.llama_vocab_p) -> InfillTokens | None:
    tokens = InfillTokens(
        prefix=lib.llama_vocab_fim_pre(vocab),
        suffix=lib.llama_vocab_fim_suf(vocab),
        middle=lib.llama_vocab_fim_mid(vocab),
    )
    return None if lib.LLAMA_TOKEN_NULL in astuple(tokens) else tokens


def _tokenizer_kind(model: lib.llama_model_p) -> str:
    kind = ctypes.create_string_buffer(64)
    lib.llama_model_meta_val_str(model, b"tokenizer.ggml.model", kind, len(kind))
    return kind.value.decode(errors="replace")


def _token_bound(tokenizer: str, vocab: lib.llama_vocab_p) -> TokenBound | None:
    strip = lib.LLAMA_TOKEN_ATTR_LSTRIP | lib.LLAMA_TOKEN_ATTR_RSTRIP
    return measure(
        tokenizer,
        lib.llama_vocab_n_tokens(vocab),
        functools.partial(lib.llama_vocab_get_text, vocab),
        functools.partial(token_to_piece, vocab, special=True),
        lambda token: bool(lib.llama_vocab_get_attr(vocab, token) & strip),
    )


def _special_text(vocab: lib.llama_vocab_p, token: int) -> str:
    if token < 0:  # LLAMA_TOKEN_NULL
        return ""
    return token_to_piece(vocab, token, special=True).decode(errors="replace")
