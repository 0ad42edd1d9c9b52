"""llama.cpp's low-level binding behind `runtime.Runtime`. Only this and `llama_cells` import it.

Return codes, null pointers and log lines of llama.cpp become our errors here and nowhere else.
Arguments are checked before each call, because a failed GGML_ASSERT ends the process.
"""

import contextlib
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import llama_cpp.llama_cpp as lib
import numpy as np
import psutil
from msgspec import Struct
from msgspec.structs import astuple
from numpy.typing import NDArray

from llmserve.engine.llama_cells import LlamaCells
from llmserve.engine.runtime import (
    AbortedError,
    Chunk,
    InfillTokens,
    Logits,
    ModelInfo,
    OutOfCellsError,
    RuntimeLimits,
    State,
)
from llmserve.engine.vocabulary import TokenBound, measure
from llmserve.errors import EngineError, ModelFileError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

log = logging.getLogger(__name__)

MAX_BATCH = 512  # tokens; larger batches prefill no faster on a CPU


OnProgress = Callable[[float], bool]


class LlamaParams(Struct, frozen=True):
    """How to load a model."""

    context_length: int  # tokens of one sequence, and of all of them together
    max_sequences: int = 16
    max_outputs: int = 16  # rows of logits in one decode call; at least max_sequences
    num_threads: int | None = None  # None: the physical cores
    full_window: bool = True  # whether a sliding window keeps all cells, so that it can be cut


class LlamaRuntime:
    """One GGUF model and one context with a unified KV cache. Implements `Runtime`."""

    def __init__(
        self, path: Path, params: LlamaParams, *, on_progress: OnProgress | None = None
    ) -> None:
        """Load `path`; `on_progress(fraction)` is called all the while, and False ends the load.

        Raises `ModelFileError` if llama.cpp refuses the file (or was told to stop), `EngineError`
        if the context cannot be made (in practice: not enough memory).
        """
        _initialize()
        self._closed = False
        self._model = _load_model(path, on_progress)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._abort_flag = ctypes.create_string_buffer(2)
        try:
            # Beside each other: one walks over the vocabulary, the other clears the KV cells.
            with ThreadPoolExecutor(1) as helper:
                info = helper.submit(_model_info, self._model, self._vocab)
                self._context = _new_context(self._model, params, self._abort_flag)
        except EngineError:
            lib.llama_model_free(self._model)
            raise
        self.info = info.result()
        self._cells = LlamaCells(self._context, scratch=params.max_sequences)
        num_cells = lib.llama_n_ctx(self._context)
        self.limits = RuntimeLimits(
            num_cells=num_cells,
            num_slots=params.max_sequences,
            max_batch=lib.llama_n_batch(self._context),
            context_length=num_cells,
            max_outputs=params.max_outputs,
            can_cut=_can_cut(self._model, params),
        )
        self._batch = _Batch(self.limits.max_batch)
        self._pieces: dict[int, bytes] = {}
        try:
            self._warm_up()
        except EngineError:
            self.close()
            raise

    def _warm_up(self) -> None:
        """Read every weight once, so that the first request does not wait for the disk."""
        self.decode([Chunk(slot=0, start=0, tokens=[0], wants_logits=True)])
        self.trim(0, 0)

    # -- text -------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        data = text.encode()
        room = len(data) + 2  # most vocabularies need no more than a token a byte, and BOS
        while True:
            tokens = (lib.llama_token * room)()
            count = lib.llama_tokenize(
                self._vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise EngineError(f"llama_tokenize failed on {len(data)} bytes")
            room = -count

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = _token_to_piece(self._vocab, token, special=False)
        return piece

    def grammar_tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        # As in llguidance.llamacpp, but that control tokens have no text, like in our answers.
        tokens = [
            _token_to_piece(self._vocab, token, special=False)
            for token in range(self.info.vocab_size)
        ]
        tokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
            tokens=tokens,
            vocab_ptr=self._vocab,
            tokenize_fptr=ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=sorted(self.info.eog_tokens),
            slices=[],
        )
        # A call of its own: each one holds the interpreter lock, and so the running streams.
        sliced: LLTokenizer = tokenizer.with_slices(LLTokenizer.json_slices())
        return sliced

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        # Not through `_pieces`, which is the worker's; the vocabulary itself never changes.
        return b"".join(_token_to_piece(self._vocab, token, special=True) for token in tokens)

    # -- computing --------------------------------------------------------------------------

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        num_outputs = self._batch.fill(chunks)
        assert num_outputs <= self.limits.max_outputs
        with _own_abort(self._abort_flag) as lines:
            code = lib.llama_decode(self._context, self._batch.struct)
        if lines:
            _emit(lines, as_debug=code == 2)
        if code == 1:
            raise OutOfCellsError
        if code == 2:
            raise AbortedError
        if code != 0:
            raise EngineError(f"llama_decode failed with code {code}")
        if num_outputs == 0:
            return np.empty((0, self.info.vocab_size), dtype=np.float32)
        rows = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, shape=(num_outputs, self.info.vocab_size))

    def trim(self, slot: int, num_tokens: int) -> None:
        self._cells.trim(slot, num_tokens)

    def share(self, source: int, target: int, num_tokens: int) -> None:
        assert self.limits.can_cut
        self._cells.share(source, target, num_tokens)

    def save(self, slot: int, start: int, end: int) -> State:
        return self._cells.save(slot, start, end)

    def load(self, slot: int, state: State, end: int) -> None:
        if self.limits.can_cut:
            self._cells.append(slot, state, end)
        else:
            self._cells.restore(slot, state, end)

    def num_tokens(self, slot: int) -> int:
        return self._cells.num_tokens(slot)

    def clear(self) -> None:
        self._cells.clear()

    def abort(self) -> None:
        self._abort_flag[0] = b"\1"

    def clear_abort(self) -> None:
        self._abort_flag[0] = b"\0"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


class _Batch:
    """A `llama_batch` over numpy arrays: filling it makes no call per token."""

    def __init__(self, max_tokens: int) -> None:
        self._tokens = np.zeros(max_tokens, dtype=np.int32)
        self._positions = np.zeros(max_tokens, dtype=np.int32)
        self._outputs = np.zeros(max_tokens, dtype=np.int8)
        self._slots = np.zeros(max_tokens, dtype=np.int32)
        # Each token has a list of the sequences it belongs to; ours point into one array.
        self._num_slots = np.ones(max_tokens, dtype=np.int32)
        addresses = np.arange(max_tokens, dtype=np.uintp) * self._slots.itemsize
        self._slot_pointers = addresses + self._slots.ctypes.data
        self.struct = lib.llama_batch(
            token=_pointer(self._tokens, lib.llama_token),
            pos=_pointer(self._positions, lib.llama_pos),
            n_seq_id=_pointer(self._num_slots, ctypes.c_int32),
            seq_id=_pointer(self._slot_pointers, ctypes.POINTER(lib.llama_seq_id)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def fill(self, chunks: Sequence[Chunk]) -> int:
        """Write `chunks`; returns the number of output rows."""
        end = num_outputs = 0
        assert sum(len(chunk.tokens) for chunk in chunks) <= len(self._tokens)
        for chunk in chunks:
            begin, end = end, end + len(chunk.tokens)
            self._tokens[begin:end] = chunk.tokens
            self._positions[begin:end] = range(chunk.start, chunk.start + len(chunk.tokens))
            self._slots[begin:end] = chunk.slot
            self._outputs[begin : end - chunk.num_outputs] = 0
            self._outputs[end - chunk.num_outputs : end] = 1
            num_outputs += chunk.num_outputs
        self.struct.n_tokens = end
        return num_outputs


def _pointer(array: NDArray[Any], item: type[Any]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(item))


def default_num_threads() -> int:
    """The physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1 << 16
    return max(1, min(psutil.cpu_count(logical=False) or os.cpu_count() or 1, allowed))


@functools.cache
def _initialize() -> None:
    lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()


_LOG_LEVELS = {3: logging.WARNING, 4: logging.ERROR}  # ggml's; what it calls info is for debugging
_last_errors: list[str] = []  # the first ones since the last load began


class _Decoding(threading.local):
    """The abort flag of the decode that runs in this thread, and what it said since it was set."""

    abort_flag: "ctypes.Array[ctypes.c_char] | None" = None
    lines: "list[tuple[int, str]]"


_decoding = _Decoding()


@contextlib.contextmanager
def _own_abort(abort_flag: "ctypes.Array[ctypes.c_char]") -> Iterator[list[tuple[int, str]]]:
    """Hold back what llama.cpp logs once it has been told to stop: it calls that an error.

    Gives (level, message) of each line, to be emitted when the outcome is known. Anything else is
    logged at once: what comes before a failed assertion must not be lost.
    """
    lines: list[tuple[int, str]] = []
    _decoding.lines = lines
    _decoding.abort_flag = abort_flag
    try:
        yield lines
    finally:
        _decoding.abort_flag = None


def _emit(lines: Iterable[tuple[int, str]], *, as_debug: bool) -> None:
    for level, message in lines:
        log.log(logging.DEBUG if as_debug else _log_level(level), "%s", message)


def _log_level(level: int) -> int:
    return _LOG_LEVELS.get(level, logging.DEBUG)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, _user_data: object) -> None:
    message = text.decode(errors="replace").rstrip()
    flag = _decoding.abort_flag
    if flag is not None and flag[0] != b"\0":
        _decoding.lines.append((level, message))
        return
    if level == 4 and len(_last_errors) < 3:
        _last_errors.append(message)
    if message.strip(". "):
        log.log(_log_level(level), "%s", message)


def system_info() -> str:
    """What this build of llama.cpp uses of this CPU, as llama.cpp prints it."""
    function = lib._lib.llama_print_system_info  # the one function that the binding leaves out
    function.restype = ctypes.c_char_p
    info: bytes = function()
    return info.decode()


def build_info() -> str:
    """What, beside the model, the state of KV cells depends on."""
    cache_types = lib.llama_context_default_params()
    return f"{llama_cpp.__version__} {cache_types.type_k} {cache_types.type_v} {system_info()}"


def _load_model(path: Path, on_progress: OnProgress | None) -> lib.llama_model_p:
    _last_errors.clear()
    wanted = lib.llama_model_default_params()
    if on_progress:
        wanted.progress_callback = lib.llama_progress_callback(
            lambda fraction, _user_data: on_progress(fraction)
        )
    model = lib.llama_model_load_from_file(os.fsencode(path), wanted)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load it: {_reason()}")
    return model


def _new_context(
    model: lib.llama_model_p, params: LlamaParams, abort_flag: ctypes.Array[ctypes.c_char]
) -> lib.llama_context_p:
    num_threads = params.num_threads or default_num_threads()
    wanted = lib.llama_context_default_params()
    wanted.n_ctx = params.context_length
    wanted.n_batch = wanted.n_ubatch = MAX_BATCH
    wanted.n_seq_max = params.max_sequences + 1  # and one for `LlamaCells` to work with
    # The default reserves logits for every token of a batch. Below n_seq_max llama.cpp aborts.
    assert params.max_outputs >= params.max_sequences
    wanted.n_outputs_max = max(params.max_outputs, wanted.n_seq_max)
    wanted.swa_full = params.full_window
    wanted.n_threads = wanted.n_threads_batch = num_threads
    wanted.kv_unified = True
    wanted.no_perf = True
    # llama.cpp asks this before every node of the graph, hundreds of times a step. A Python
    # callback would take the interpreter lock each time; strlen answers 0 or 1 without it.
    wanted.abort_callback = ctypes.cast(_libc_strlen(), lib.ggml_abort_callback)
    wanted.abort_callback_data = ctypes.cast(abort_flag, ctypes.c_void_p)
    _last_errors.clear()
    context = lib.llama_init_from_model(model, wanted)
    if not context:
        raise EngineError(
            f"llama.cpp cannot make a context of {params.context_length} tokens: {_reason()}"
        )
    return context


def _can_cut(model: lib.llama_model_p, params: LlamaParams) -> bool:
    """Whether a sequence can be cut anywhere: a recurrent state has no past to go back to."""
    is_windowed = lib.llama_model_n_swa(model) > 0 and not params.full_window
    is_recurrent = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
    return not (is_windowed or is_recurrent)


def _libc_strlen() -> "ctypes._FuncPointer":
    return ctypes.CDLL(None).strlen


def _reason() -> str:
    return "; ".join(_last_errors) or "no reason given"


def _model_info(model: lib.llama_model_p, vocab: lib.llama_vocab_p) -> ModelInfo:
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
        functools.partial(_token_to_piece, vocab, special=True),
        lambda token: bool(lib.llama_vocab_get_attr(vocab, token) & strip),
    )


def _special_text(vocab: lib.llama_vocab_p, token: int) -> str:
    if token < 0:  # LLAMA_TOKEN_NULL
        return ""
    return _token_to_piece(vocab, token, special=True).decode(errors="replace")


def _token_to_piece(vocab: lib.llama_vocab_p, token: int, *, special: bool) -> bytes:
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if length >= 0:
            return buffer.raw[:length]
        size = -length
