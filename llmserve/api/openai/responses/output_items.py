"""The items of an answer, each with the events of its life: begin, grow, end.

The order is that of OpenAI's streams: the item is added; its part is added, grows by deltas, and is
repeated whole when it is done; then the item, whole. Calls have no parts.
"""

import secrets
from abc import ABC, abstractmethod
from typing import ClassVar

from llmserve.api.openai.chat_schemas import ContentLogprob
from llmserve.api.openai.logprobs import content_logprobs
from llmserve.api.openai.responses.items import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningText,
    StreamEvent,
    SummaryDelta,
    SummaryDone,
    SummaryPartAdded,
    SummaryPartDone,
    SummaryText,
    TextDelta,
    TextDone,
)
from llmserve.core import Delta, ToolCallDelta
from llmserve.core import ReasoningDelta as Thought

Part = Delta | Thought | ToolCallDelta


class GrowingItem(ABC):
    """One item of the output, while it is being made. `index` is its place in the output."""

    prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"{self.prefix}_{secrets.token_hex(24)}"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def begin(self) -> list[StreamEvent]:
        added = ItemAdded(output_index=self.index, item=self._item("in_progress"))
        return [added, *self._begin_part()]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[StreamEvent]]:
        """The whole item, and the events that say so."""
        item = self._item(status)
        return item, [*self._end_part(), ItemDone(output_index=self.index, item=item)]

    @abstractmethod
    def takes(self, part: Part) -> bool:
        """Whether `part` belongs to this item."""

    @abstractmethod
    def grow(self, part: Part) -> list[StreamEvent]: ...

    @abstractmethod
    def _item(self, status: ItemStatus) -> OutputItem:
        """The item as it is now; without its part before that has begun to grow."""

    @abstractmethod
    def _begin_part(self) -> list[StreamEvent]: ...

    @abstractmethod
    def _end_part(self) -> list[StreamEvent]: ...


class GrowingMessage(GrowingItem):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[ContentLogprob] = []

    def takes(self, part: Part) -> bool:
        return isinstance(part, Delta)

    def _item(self, status: ItemStatus) -> OutputMessage:
        return OutputMessage(
            id=self.id, status=status, content=[self._part()] if self._pieces else []
        )

    def _part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=self._logprobs)

    def _begin_part(self) -> list[StreamEvent]:
        part = OutputText(text="")
        return [PartAdded(item_id=self.id, output_index=self.index, part=part)]

    def grow(self, part: Part) -> list[StreamEvent]:
        assert isinstance(part, Delta)
        logprobs = content_logprobs(part.logprobs)
        self._pieces.append(part.text)
        self._logprobs += logprobs
        return [
            TextDelta(item_id=self.id, output_index=self.index, delta=part.text, logprobs=logprobs)
        ]

    def _end_part(self) -> list[StreamEvent]:
        return [
            TextDone(
                item_id=self.id, output_index=self.index, text=self.text, logprobs=self._logprobs
            ),
            PartDone(item_id=self.id, output_index=self.index, part=self._part()),
        ]


class GrowingReasoning(GrowingItem):
    prefix = "rs"

    def takes(self, part: Part) -> bool:
        return isinstance(part, Thought)

    def _item(self, status: ItemStatus) -> OutputReasoning:
        content = [ReasoningText(self.text)] if self._pieces else []
        return OutputReasoning(id=self.id, status=status, content=content)

    def _begin_part(self) -> list[StreamEvent]:
        part = ReasoningText("")
        return [PartAdded(item_id=self.id, output_index=self.index, part=part)]

    def grow(self, part: Part) -> list[StreamEvent]:
        assert isinstance(part, Thought)
        self._pieces.append(part.text)
        return [ReasoningDelta(item_id=self.id, output_index=self.index, delta=part.text)]

    def _end_part(self) -> list[StreamEvent]:
        return [
            ReasoningDone(item_id=self.id, output_index=self.index, text=self.text),
            PartDone(item_id=self.id, output_index=self.index, part=ReasoningText(self.text)),
        ]


class GrowingSummary(GrowingReasoning):
    """The same thoughts, for a client that asked for a summary of them."""

    def _item(self, status: ItemStatus) -> OutputReasoning:
        summary = [SummaryText(self.text)] if self._pieces else []
        return OutputReasoning(id=self.id, status=status, summary=summary)

    def _begin_part(self) -> list[StreamEvent]:
        part = SummaryText("")
        return [SummaryPartAdded(item_id=self.id, output_index=self.index, part=part)]

    def grow(self, part: Part) -> list[StreamEvent]:
        assert isinstance(part, Thought)
        self._pieces.append(part.text)
        return [SummaryDelta(item_id=self.id, output_index=self.index, delta=part.text)]

    def _end_part(self) -> list[StreamEvent]:
        part = SummaryText(self.text)
        return [
            SummaryDone(item_id=self.id, output_index=self.index, text=self.text),
            SummaryPartDone(item_id=self.id, output_index=self.index, part=part),
        ]


class GrowingCall(GrowingItem):
    prefix = "fc"

    def __init__(self, index: int, first: ToolCallDelta) -> None:
        super().__init__(index)
        assert first.id is not None
        assert first.name is not None
        self._call_index, self._call_id, self._name = first.index, first.id, first.name

    def takes(self, part: Part) -> bool:
        return isinstance(part, ToolCallDelta) and part.index == self._call_index

    def grow(self, part: Part) -> list[StreamEvent]:
        assert isinstance(part, ToolCallDelta)
        if not part.arguments:  # as the first piece, which is the name
            return []
        self._pieces.append(part.arguments)
        return [ArgumentsDelta(item_id=self.id, output_index=self.index, delta=part.arguments)]

    def _item(self, status: ItemStatus) -> OutputCall:
        return OutputCall(
            id=self.id,
            call_id=self._call_id,
            name=self._name,
            arguments=self.text,
            status=status,
        )

    def _begin_part(self) -> list[StreamEvent]:
        return []

    def _end_part(self) -> list[StreamEvent]:
        return [
            ArgumentsDone(
                item_id=self.id, output_index=self.index, name=self._name, arguments=self.text
            )
        ]


def growing_item(index: int, first: Part, *, wants_summary: bool) -> GrowingItem:
    """The item that begins with `first`."""
    match first:
        case Delta():
            return GrowingMessage(index)
        case Thought():
            return GrowingSummary(index) if wants_summary else GrowingReasoning(index)
        case ToolCallDelta():
            return GrowingCall(index, first)
