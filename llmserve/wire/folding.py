"""All events of a generation -> the whole of it."""

from llmserve.core import (
    Delta,
    Finished,
    Part,
    PromptLogprobs,
    ReasoningDelta,
    SampledLogprob,
    Started,
    ToolCall,
    ToolCallDelta,
)


class Folded:
    """One whole generation, as its events built it up."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.prompt_logprobs: PromptLogprobs | None = None
        self.logprobs: list[SampledLogprob] = []
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []  # id, name, pieces of the arguments
        self._finished: Finished | None = None

    def add(self, event: Part | Finished) -> None:
        match event:
            case PromptLogprobs():
                self.prompt_logprobs = event
            case Delta(text, logprobs):
                self._texts.append(text)
                self.logprobs += logprobs
            case ReasoningDelta(text):
                self._reasonings.append(text)
            case ToolCallDelta():
                self._add_call(event)
            case Finished():
                self._finished = event

    def _add_call(self, part: ToolCallDelta) -> None:
        if part.index == len(self._calls):
            assert part.id is not None
            assert part.name is not None
            self._calls.append((part.id, part.name, []))
        self._calls[part.index][2].append(part.arguments)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [ToolCall(call_id, name, "".join(pieces)) for call_id, name, pieces in self._calls]

    @property
    def is_finished(self) -> bool:
        return self._finished is not None

    @property
    def finished(self) -> Finished:
        assert self._finished, "rendered before its end"
        return self._finished
