"""The KV cells of llama.cpp's sequences: cut, share, copy out and in.

In a unified cache, `llama_memory_seq_cp` only notes that cells belong to one more sequence. That
makes a part of a sequence, which the state functions do not know, a matter of one more sequence:
it is lent the cells (or gets them loaded), and forgets them again.
"""

import ctypes

import llama_cpp.llama_cpp as lib
import numpy as np

from llmserve.engine.runtime import OutOfCellsError, State
from llmserve.errors import EngineError


class LlamaCells:
    def __init__(self, context: lib.llama_context_p, scratch: int, window: int) -> None:
        """`scratch` is an otherwise unused sequence; `window` is 0 for a model without one."""
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._scratch = scratch
        self._window = window

    def num_tokens(self, slot: int) -> int:
        return int(lib.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def trim(self, slot: int, num_tokens: int) -> None:
        """Raises `EngineError` where the model cannot be cut; 0 is always possible."""
        if not lib.llama_memory_seq_rm(self._memory, slot, num_tokens, -1):
            raise EngineError(f"llama_memory_seq_rm cannot cut a sequence at {num_tokens} tokens")
        if self._window and num_tokens:
            first = lib.llama_memory_seq_pos_min(self._memory, slot)
            if first > max(0, num_tokens - self._window):
                raise EngineError(
                    f"what token {num_tokens} sees begins before {first}, and is gone"
                )

    def clear(self) -> None:
        # Trimming all slots would leave the search for free cells somewhere else.
        lib.llama_memory_clear(self._memory, False)

    def share(self, source: int, target: int, num_tokens: int) -> None:
        lib.llama_memory_seq_cp(self._memory, source, target, 0, num_tokens)

    def save(self, slot: int, start: int, end: int) -> State:
        """The cells of the tokens from `start` to `end`; of a whole sequence, all its state."""
        if start == 0 and end == self.num_tokens(slot):
            return self._state(slot)
        lib.llama_memory_seq_cp(self._memory, slot, self._scratch, start, end)
        try:
            return self._state(self._scratch)
        finally:
            self.trim(self._scratch, 0)

    def append(self, slot: int, state: State, end: int) -> None:
        """Of `state`, what follows the tokens of `slot`, up to `end`."""
        start = self.num_tokens(slot)
        try:
            self._set_state(self._scratch, state)
            if self.num_tokens(self._scratch) < end:
                raise EngineError(f"a saved state ends before token {end}")
            lib.llama_memory_seq_cp(self._memory, self._scratch, slot, start, end)
        finally:
            self.trim(self._scratch, 0)

    def restore(self, slot: int, state: State, end: int) -> None:
        """All of `state`, which is that of `end` tokens, into the empty `slot`."""
        self._set_state(slot, state)
        if self.num_tokens(slot) != end:
            self.trim(slot, 0)
            raise EngineError(f"a saved state is not one of {end} tokens")

    def _state(self, slot: int) -> State:
        size = lib.llama_state_seq_get_size(self._context, slot)
        state = np.empty(size, dtype=np.uint8)
        if lib.llama_state_seq_get_data(self._context, _bytes(state), size, slot) != size:
            raise EngineError(f"llama_state_seq_get_data failed on {size} bytes")
        return state

    def _set_state(self, slot: int, state: State) -> None:
        """It refuses what it finds no cells for, or what another context has saved."""
        size = state.nbytes
        if lib.llama_state_seq_set_data(self._context, _bytes(state), size, slot) != size:
            self.trim(slot, 0)
            raise OutOfCellsError


def _bytes(state: State) -> "ctypes._Pointer[ctypes.c_uint8]":
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
