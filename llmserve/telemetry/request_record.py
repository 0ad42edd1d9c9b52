"""The facts of one HTTP request, for the one line that tells of it when it has ended.

What knows one fills it in: the record is found through a context variable, which the tasks of
the request inherit. Prompts and answers are in it only where the operator asked for them.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from llmserve.core import FinishReason, Timings, Usage

MAX_TEXT_LEN = 2000  # characters of a prompt, an answer, or any other value in a log line

DISCONNECTED = "disconnected"  # among the codes of errors: the caller left


@dataclass(slots=True)
class RequestRecord:
    """With several choices, tokens are those of all, and times those of the slowest."""

    request_id: str
    keeps_text: bool = False  # whether prompts and answers may be logged
    trace_id: str | None = None
    client: str | None = None  # the name of its API key
    model: str | None = None  # as it was asked for, unless that is the default
    error: str | None = None  # a code of `llmserve.errors`, or `DISCONNECTED`
    answered_by: list[str] = field(default_factory=list)
    finish_reasons: list[FinishReason] = field(default_factory=list)
    num_choices: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def fail(self, code: str) -> None:
        """The first error counts; that a caller left may be the consequence of one."""
        if self.error in (None, DISCONNECTED):
            self.error = code

    def add_answer(self, model: str) -> None:
        if model not in self.answered_by:
            self.answered_by.append(model)

    def add_finished(self, reason: FinishReason, usage: Usage, timings: Timings) -> None:
        self.num_choices += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.generated_tokens += usage.generated_tokens
        self.queue_s = max(self.queue_s, timings.queue_s)
        self.ttft_s = max(self.ttft_s, timings.ttft_s)
        if reason not in self.finish_reasons:
            self.finish_reasons.append(reason)

    def fields(self) -> dict[str, object]:
        """What is known, under the names that the log has for it."""
        found: dict[str, object] = {
            "client": self.client,
            "error": self.error,
            "model": self.model,
            "answered_by": ",".join(self.answered_by) or None,
            "prompt_tokens": self.prompt_tokens or None,
        }
        if self.num_choices:
            found |= {
                "choices": self.num_choices if self.num_choices > 1 else None,
                "cached_tokens": self.cached_tokens,
                "generated_tokens": self.generated_tokens,
                "finish_reason": ",".join(self.finish_reasons),
                "queue_s": round(self.queue_s, 4),
                "ttft_s": round(self.ttft_s, 4),
            }
        if self.keeps_text:
            found |= {"prompt": _joined(self.prompts), "answer": _joined(self.answers)}
        return {name: value for name, value in found.items() if value is not None}


def _joined(texts: list[str]) -> str | None:
    return "\n---\n".join(texts) if texts else None


_current: ContextVar[RequestRecord | None] = ContextVar("llmserve_request", default=None)


def current_record() -> RequestRecord | None:
    """That of the request that this task works for, if it does."""
    return _current.get()


def set_current(record: RequestRecord | None) -> None:
    """For the rest of this task and the tasks that it starts."""
    _current.set(record)


def note_error(code: str) -> None:
    """Why the request of this task fails."""
    if record := _current.get():
        record.fail(code)
