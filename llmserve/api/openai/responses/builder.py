"""Core's events -> the events of a response and, with the last of them, the response itself.

Pure. `created` and `in_progress`; the items of the output, one after the other; then `completed`,
`incomplete` or `failed`. A new item begins where the model goes over to something else: from
thinking to talking, or to the next call.
"""

import time

import msgspec

from llmserve.api.http.errors import ErrorBody
from llmserve.api.openai.responses.items import (
    Completed,
    Created,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputTokensDetails,
    ItemStatus,
    LifecycleEvent,
    OutputReasoning,
    OutputTokensDetails,
    ResponseBody,
    ResponseError,
    ResponseUsage,
    StreamError,
    StreamEvent,
)
from llmserve.api.openai.responses.output_items import GrowingItem, Part, growing_item
from llmserve.core import (
    Delta,
    Event,
    Finished,
    FinishReason,
    PromptLogprobs,
    Queued,
    Started,
    Usage,
)


class ResponseBuilder:
    """`echo` is the answer before it begins. `response` is whole after `Finished`."""

    def __init__(self, echo: ResponseBody, *, wants_summary: bool) -> None:
        self.response = echo
        self._wants_summary = wants_summary
        self._item: GrowingItem | None = None
        self._num_events = 0

    def push(self, event: Event) -> list[StreamEvent]:
        match event:
            case Started(model):
                self._set(model=model)
                return self._numbered(
                    [Created(response=self.response), InProgress(response=self.response)]
                )
            case Finished():
                return self._numbered(self._finish(event))
            case PromptLogprobs() | Queued():  # not asked for; not told here
                return []
            case _:
                return self._numbered(self._grow(event))

    def fail(self, error: ErrorBody) -> list[StreamEvent]:
        """What ends a stream that cannot go on."""
        told = StreamError(code=error.code, message=error.message, param=error.param, error=error)
        events = [told, *self._end_item("incomplete"), self._failed(error.message)]
        return self._numbered(events)

    def _grow(self, part: Part) -> list[StreamEvent]:
        if self._item and self._item.takes(part):
            return self._item.grow(part)
        ended = self._end_item("completed")
        index = len(self.response.output)
        self._item = growing_item(index, part, wants_summary=self._wants_summary)
        return [*ended, *self._item.begin(), *self._item.grow(part)]

    def _end_item(self, status: ItemStatus) -> list[StreamEvent]:
        if self._item is None:
            return []
        item, events = self._item.end(status)
        self._set(output=[*self.response.output, item])
        self._item = None
        return events

    def _finish(self, event: Finished) -> list[StreamEvent]:
        is_whole = event.reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)
        status: ItemStatus = "completed" if is_whole else "incomplete"
        self._set(usage=_usage(event.usage))
        events = self._end_item(status)
        if all(isinstance(item, OutputReasoning) for item in self.response.output):
            # There is always something to read, or something to call.
            events += [*self._grow(Delta("")), *self._end_item(status)]
        return [*events, self._last(event.reason)]

    def _last(self, reason: FinishReason) -> LifecycleEvent:
        match reason:
            case FinishReason.LENGTH:
                details = IncompleteDetails("max_output_tokens")
                self._set(status="incomplete", incomplete_details=details)
                return Incomplete(response=self.response)
            case FinishReason.CANCELLED:
                return self._failed("the server shut down before the answer was complete")
            case _:
                self._set(status="completed", completed_at=int(time.time()))
                return Completed(response=self.response)

    def _failed(self, message: str) -> Failed:
        self._set(status="failed", error=ResponseError("server_error", message))
        return Failed(response=self.response)

    def _set(self, **fields: object) -> None:
        # A copy, for the events that were given out keep what they had.
        self.response = msgspec.structs.replace(self.response, **fields)

    def _numbered(self, events: list[StreamEvent]) -> list[StreamEvent]:
        for event in events:
            event.sequence_number = self._num_events
            self._num_events += 1
        return events


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.cached_tokens),
        output_tokens=usage.generated_tokens,
        output_tokens_details=OutputTokensDetails(usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.generated_tokens,
    )
