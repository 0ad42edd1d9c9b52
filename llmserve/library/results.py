"""What calls return."""

from msgspec import Struct

from llmserve.core import FinishReason, Message, Timings, ToolCall
from llmserve.wire.folding import Folded

_MAX_SHOWN_LEN = 60


class Generation(Struct, frozen=True):
    """A whole answer; its `str()` is its text. Names are those of `details` in POST /inference."""

    text: str
    finish_reason: FinishReason
    model: str  # the one that answered, which may be a fallback
    prompt_tokens: int
    cached_tokens: int  # of the prompt's, those that were known and not computed
    generated_tokens: int
    timings: Timings
    seed: int | None = None  # None: a provider drew it
    stop_sequence: str | None = None
    reasoning: str = ""  # what a model that thinks has thought
    tool_calls: tuple[ToolCall, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text
        shown = text if len(text) <= _MAX_SHOWN_LEN else f"{text[:_MAX_SHOWN_LEN]}…"
        calls = f", tool_calls={list(self.tool_calls)}" if self.tool_calls else ""
        return (
            f"Generation({shown!r}, finish_reason={str(self.finish_reason)!r}{calls},"
            f" model={self.model!r}, prompt_tokens={self.prompt_tokens},"
            f" generated_tokens={self.generated_tokens})"
        )

    @property
    def message(self) -> Message:
        """The answer as the assistant's turn, to go on with the conversation."""
        return Message(
            "assistant",
            self.text,
            reasoning=self.reasoning or None,
            tool_calls=self.tool_calls,
        )


def to_generation(folded: Folded) -> Generation:
    finished = folded.finished
    return Generation(
        text=folded.text,
        finish_reason=finished.reason,
        model=folded.started.model,
        prompt_tokens=finished.usage.prompt_tokens,
        cached_tokens=finished.usage.cached_tokens,
        generated_tokens=finished.usage.generated_tokens,
        timings=finished.timings,
        seed=folded.started.seed,
        stop_sequence=finished.stop_sequence,
        reasoning=folded.reasoning,
        tool_calls=tuple(folded.tool_calls),
    )
