"""What every call into llama.cpp needs: its batch, its abort flag, its log, why it failed."""

import contextlib
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from llmserve.engine.runtime import AbortedError, Chunk, InputChunk, OutOfCellsError
from llmserve.errors import EngineError

log = logging.getLogger("llmserve.engine.llama")  # whichever module here calls

AbortFlag = ctypes.Array[ctypes.c_char]
Call: TypeAlias = Literal["llama_decode", "llama_encode"]


class Batch:
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

    def fill(self, chunks: Sequence[Chunk] | Sequence[InputChunk]) -> int:
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


# -- calling ---------------------------------------------------------------------------------


def compute(context: lib.llama_context_p, batch: Batch, flag: AbortFlag, call: Call) -> None:
    """`call` on `batch`.

    Raises `OutOfCellsError`, `AbortedError` (`flag`, the context's, was set) or `EngineError`.
    """
    with own_abort(flag) as lines:
        code = getattr(lib, call)(context, batch.struct)
    if lines:
        _emit(lines, as_debug=code == 2)
    if code == 1:
        raise OutOfCellsError
    if code == 2:
        raise AbortedError
    if code != 0:
        raise EngineError(f"{call} failed with code {code}")


def make_context(
    model: lib.llama_model_p, wanted: lib.llama_context_params, num_threads: int, flag: AbortFlag
) -> lib.llama_context_p:
    """A context that `flag` interrupts. Raises `EngineError` (in practice: too little memory)."""
    wanted.n_threads = wanted.n_threads_batch = num_threads
    wanted.kv_unified = True
    wanted.no_perf = True
    # llama.cpp asks this before every node of the graph, hundreds of times a step. A Python
    # callback would take the interpreter lock each time; strlen answers 0 or 1 without it.
    wanted.abort_callback = ctypes.cast(libc_strlen(), lib.ggml_abort_callback)
    wanted.abort_callback_data = ctypes.cast(flag, ctypes.c_void_p)
    last_errors.clear()
    context = lib.llama_init_from_model(model, wanted)
    if not context:
        raise EngineError(
            f"llama.cpp cannot make a context of {wanted.n_ctx} tokens: {failure_reason()}"
        )
    return context


def libc_strlen() -> "ctypes._FuncPointer":
    return ctypes.CDLL(None).strlen


# -- what it says ------------------------------------------------------------------------------


@functools.cache
def initialize() -> None:
    # Or a failed assertion has a debugger, if there is one, print the stack of this process: for
    # seconds, and over the one line that says what is wrong.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    lib.llama_log_set(log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()


_LOG_LEVELS = {3: logging.WARNING, 4: logging.ERROR}  # ggml's; what it calls info is for debugging
last_errors: list[str] = []  # the first ones since the last load began


class _Decoding(threading.local):
    """The abort flag of the decode that runs in this thread, and what it said since it was set."""

    abort_flag: "AbortFlag | None" = None
    lines: "list[tuple[int, str]]"
    is_quiet = False


_decoding = _Decoding()


@contextlib.contextmanager
def own_abort(abort_flag: AbortFlag) -> Iterator[list[tuple[int, str]]]:
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings of this thread's calls are for debugging: they are about what is wanted so."""
    _decoding.is_quiet = True
    try:
        yield
    finally:
        _decoding.is_quiet = False


def _emit(lines: Iterable[tuple[int, str]], *, as_debug: bool) -> None:
    for level, message in lines:
        log.log(logging.DEBUG if as_debug else _log_level(level), "%s", message)


def _log_level(level: int) -> int:
    return _LOG_LEVELS.get(level, logging.DEBUG)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def log_callback(level: int, text: bytes, _user_data: object) -> None:
    message = text.decode(errors="replace").rstrip()
    flag = _decoding.abort_flag
    if flag is not None and flag[0] != b"\0":
        _decoding.lines.append((level, message))
        return
    if level == 4 and len(last_errors) < 3:
        last_errors.append(message)
    if message.strip(". "):
        is_debug = _decoding.is_quiet and level < 4
        log.log(logging.DEBUG if is_debug else _log_level(level), "%s", message)


def failure_reason() -> str:
    return "; ".join(last_errors) or "no reason given"
