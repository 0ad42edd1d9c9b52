"""What the engine needs from an inference library, and nothing more.

`engine/llama` implements it on llama.cpp, `FakeRuntime` of the tests in memory. Threads:
`tokenize`, `detokenize`, `find_marker`, `grammar_tokenizer` and `abort` may be called from any
thread, everything else by the worker's thread only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from llmserve.core import Pooling, Vectors

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_BATCH = 512  # tokens in one call; larger batches prefill no faster on a CPU

Logits = NDArray[np.float32]
State = NDArray[np.uint8]  # what KV cells hold, in a form of the runtime's own


class InfillTokens(Struct, frozen=True):
    """The tokens of a model that was trained to fill in the middle of a text."""

    prefix: int  # before what comes before the answer
    suffix: int  # before what comes after it
    middle: int  # before the answer


class ModelInfo(Struct, frozen=True):
    """What a loaded model says about itself."""

    description: str
    vocab_size: int
    eog_tokens: frozenset[int]  # tokens that end a generation
    bos_text: str  # "" if the model has none; templates write it themselves
    eos_text: str
    chat_template: str | None  # jinja source from the GGUF
    max_token_bytes: int | None = None  # of text in one token; None: no bound is known
    lost_bytes: bytes = b""  # bytes of text that may have no token at all
    tokenizer: str = ""  # its kind, as the GGUF calls it: gpt2, llama, …
    adds_bos: bool = False  # whether the model wants its BOS in front of every text
    infill: InfillTokens | None = None
    generates: bool = True  # False: made for embeddings only; neither `decode` nor `trim`


class RuntimeLimits(Struct, frozen=True):
    num_cells: int  # KV cells shared by all slots; one cell holds one token
    num_slots: int  # sequences at the same time
    max_batch: int  # tokens in one decode call
    context_length: int  # tokens in one sequence
    max_outputs: int  # output rows of one decode call; at least num_slots
    can_cut: bool = True  # whether a sequence can be cut and continued at any of its tokens


class EmbeddingParams(Struct, frozen=True):
    """How to compute embeddings. Lengths are tokens.

    `is_whole`: every token sees all others, so that an input has to be in one call.
    """

    pooling: Pooling
    is_whole: bool
    max_len: int  # of one input; of all unfinished ones together
    max_batch: int  # in one call, but for a longer input that has to be whole
    max_inputs: int  # in one call; not above `max_tokens`

    @property
    def max_tokens(self) -> int:
        """In one call."""
        return self.max_len if self.is_whole else self.max_batch


class LlamaParams(Struct, frozen=True):
    """How to load a model."""

    context_length: int  # tokens of one sequence, and of all of them together
    max_sequences: int
    max_outputs: int  # rows of logits in one decode call; at least max_sequences
    num_threads: int | None = None  # None: the physical cores
    embedding: EmbeddingParams | None = None
    generates: bool = True  # False: for embeddings only


class EmbeddingLimits(Struct, frozen=True):
    num_dimensions: int
    max_len: int  # tokens of one input
    max_batch: int  # tokens in one call
    max_inputs: int  # unfinished inputs at the same time
    num_cells: int | None  # tokens of all unfinished inputs; None: an input has to be in one call

    @property
    def is_whole(self) -> bool:
        """Whether an input has to be in one call, alone if it is longer than `max_batch`."""
        return self.num_cells is None


class InputChunk(NamedTuple):
    """Consecutive tokens of an input to embed, as `Chunk`; `is_last` asks for its vector."""

    slot: int
    start: int
    tokens: Sequence[int]
    is_last: bool

    @property
    def num_outputs(self) -> int:
        """Every token: there is no other way to embeddings in llama.cpp."""
        return len(self.tokens)


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence: `tokens[i]` goes to position `start + i` of `slot`.

    With `wants_logits` the last token's logits are an output row, with `wants_all` every token's.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    wants_logits: bool
    wants_all: bool = False

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) if self.wants_all else int(self.wants_logits)


class Marker(NamedTuple):
    """A word of a chat format that is a token of its own."""

    token: int
    is_control: bool  # so `token_bytes` has nothing to show for it


class OutOfCellsError(Exception):
    """The batch found no free KV cells; the memory is as before the call."""


class AbortedError(Exception):
    """`abort` interrupted the call; cells of the batch may or may not have been written."""


class Runtime(Protocol):
    @property
    def info(self) -> ModelInfo: ...

    @property
    def limits(self) -> RuntimeLimits: ...

    @property
    def embedding_limits(self) -> EmbeddingLimits | None:
        """None: the model was not loaded for embeddings, and `embed` must not be called."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special` puts the model's BOS in front where the model wants one; with `parse_special`
        special tokens written in the text are recognised. Raises `UnicodeEncodeError` for a lone
        surrogate.
        """

    def token_bytes(self, token: int) -> bytes:
        """The token's text as UTF-8, possibly a part of a character; b"" for control tokens."""

    def find_marker(self, text: str) -> Marker | None:
        """The token that `text` is as a whole, if it is one."""

    def grammar_tokenizer(self) -> "LLTokenizer":
        """The vocabulary as llguidance needs it, with each token's text as in `token_bytes`.

        Takes 0.3 s for 49k tokens. What is made with it must be gone before `close`.
        """

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Their text as UTF-8, with that of control tokens. All must be in the vocabulary."""

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        """Compute one batch, at most `max_batch` tokens, at most one chunk a slot.

        Returns a (num_outputs, vocab_size) view in the order of the chunks and their tokens, at
        most `max_outputs` rows, valid until the next call. Raises `OutOfCellsError`,
        `AbortedError`, or `EngineError`.
        """

    def trim(self, slot: int, num_tokens: int) -> None:
        """Forget everything in `slot` from position `num_tokens` on.

        Raises `EngineError` where the model cannot be cut there; 0 is always possible.
        """

    def clear(self) -> None:
        """Forget everything in all slots: what comes next is computed as by a new context."""

    def share(self, source: int, target: int, num_tokens: int) -> None:
        """Let `target`, which is empty, begin with the first tokens of `source`, in its cells.

        They are no cells of their own until `source` is trimmed. Only with `limits.can_cut`.
        """

    def save(self, slot: int, start: int, end: int) -> State:
        """The cells of the tokens from `start` to `end`, about 2 ms for 1,000 tokens.

        Without `limits.can_cut` they must be all of the slot's tokens.
        """

    def load(self, slot: int, state: State, end: int) -> None:
        """Let `slot` go on with what `save` gave, from where it is up to `end` tokens.

        That must be within the saved range; without `limits.can_cut` the slot must be empty and
        `end` that of the range. Raises `OutOfCellsError` or `EngineError`, and then `slot` is as
        it was.
        """

    def num_tokens(self, slot: int) -> int:
        """How many tokens `slot` holds by the runtime's own books."""

    def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
        """Compute the next tokens of some inputs, in slots that are not those of `decode`.

        Returns (chunks that are last, num_dimensions) in their order, of any length; their slots
        are free again. Raises `AbortedError` or `EngineError`, and then all inputs are forgotten.
        """

    def forget(self, slot: int) -> None:
        """Drop an unfinished input of `embed`."""

    def abort(self) -> None:
        """Make the running `decode` or `embed` raise `AbortedError` soon, until `clear_abort`."""

    def clear_abort(self) -> None: ...

    def close(self) -> None:
        """Give all memory back. Nothing may be called afterwards."""
