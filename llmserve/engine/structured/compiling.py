"""The thread in which requests' grammars are compiled, one after the other."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmserve.core import Constraint
from llmserve.engine.structured.compiler import Compiler
from llmserve.engine.structured.grammar import field_of
from llmserve.engine.structured.limits import refusal
from llmserve.engine.thread import ModelThread
from llmserve.errors import LlmserveError, UnavailableError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Of a request for its grammar, also behind others'. What is given to native code takes a second or
# two at most, on this machine; nothing could stop it there.
MAX_COMPILE_S = 15.0

STACK_BYTES = 64 * 2**20  # 8 MiB overflow at 3,000 rules in a chain


class Compiling:
    """A model's `compiler` in a thread of its own: who brings no grammar need not wait for it."""

    def __init__(self, model: str, make_tokenizer: "Callable[[], LLTokenizer]") -> None:
        self.compiler = Compiler(make_tokenizer)
        self._thread = ModelThread(f"compiler-{model}", stack_bytes=STACK_BYTES)

    async def prepare(self, request_id: int, constraint: Constraint) -> None:
        """Have a matcher ready for the worker. To be cancelled is fine.

        Raises what `Compiler.prepare` raises, and after `MAX_COMPILE_S` `UnavailableError`, or
        `InvalidRequestError` if this very grammar is what takes so long.
        """
        prepared = self._thread.submit(self.compiler.prepare, request_id, constraint)
        try:
            async with asyncio.timeout(MAX_COMPILE_S):
                await asyncio.wrap_future(prepared)
        except (asyncio.CancelledError, TimeoutError) as error:
            # Behind what it may still prepare, which nobody takes.
            self._thread.submit(self.compiler.discard, request_id)
            if isinstance(error, TimeoutError):
                raise _too_slow(constraint, is_running=not prepared.cancel()) from error
            raise

    def close(self) -> None:
        """Return when all that was asked for is compiled, and never again use the model."""
        self._thread.shutdown()
        self._thread.join()


def _too_slow(constraint: Constraint, *, is_running: bool) -> LlmserveError:
    if is_running:
        return refusal(field_of(constraint), f"it takes over {MAX_COMPILE_S:.0f} s to compile")
    return UnavailableError(
        f"other requests' grammars take over {MAX_COMPILE_S:.0f} s to compile; try again later",
        retry_after_s=math.ceil(MAX_COMPILE_S),
    )
