"""The input of a response -> core's messages.

An assistant's turn is several items on the wire (what it thought, what it said, what it called)
and one message for a chat template.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from llmserve import core
from llmserve.api.http.decode import decode_kind
from llmserve.api.openai.errors import UnsupportedFieldError
from llmserve.api.openai.params import refuse
from llmserve.api.openai.responses.schemas import (
    ContentPart,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    MessageItem,
    ReasoningItem,
)
from llmserve.api.openai.tools import to_call
from llmserve.errors import InvalidRequestError
from llmserve.wire.validation import MissingFieldError

_KINDS: dict[str | None, type[InputItem]] = {
    None: MessageItem,
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}
_REASONS = {"item_reference": "nothing is stored: send the item itself"}
_TEXT_PARTS = ("input_text", "output_text", "text")
_REFUSED_OF_PARTS: dict[str, tuple[object, ...]] = dict.fromkeys(
    ("image_url", "file_id", "file_data", "file_url", "filename", "input_audio"), ()
)
_REFUSED_OF_OUTPUTS: dict[str, tuple[object, ...]] = {
    "namespace": (),
    "caller": ({"type": "direct"},),
}
_REFUSED_OF_CALLS = {**_REFUSED_OF_OUTPUTS, "async_": (False,)}


def to_messages(given: str | Sequence[Raw], instructions: str | None) -> tuple[core.Message, ...]:
    """Raises `InvalidRequestError`s that name the item."""
    history = _History()
    if instructions:
        history.add(core.Message("system", instructions))
    if isinstance(given, str):
        history.add(core.Message("user", given))
    else:
        for i, raw in enumerate(given):
            path = f"input[{i}]"
            history.read(decode_kind(raw, _KINDS, at=path, reasons=_REASONS), path)
    return history.finish()


class _History:
    """Items in, messages out; the assistant's turn that is being put together is open."""

    def __init__(self) -> None:
        self._messages: list[core.Message] = []
        self._turn: core.Message | None = None
        self._names: dict[str, str] = {}  # call id -> the function's name

    def add(self, message: core.Message) -> None:
        self._end_turn()
        self._messages.append(message)

    def finish(self) -> tuple[core.Message, ...]:
        self._end_turn()
        return tuple(self._messages)

    def read(self, item: InputItem, path: str) -> None:
        match item:
            case MessageItem():
                self._read_message(item, path)
            case FunctionCallItem():
                self._read_call(item, path)
            case FunctionCallOutputItem():
                self._read_output(item, path)
            case ReasoningItem():
                self._read_reasoning(item, path)

    def _read_message(self, item: MessageItem, path: str) -> None:
        text = _text(item.content, f"{path}.content")
        if item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            self.add(core.Message(role, text))
            return
        turn = self._turn
        if turn is None or turn.content or turn.tool_calls:
            turn = self._begin_turn()
        self._turn = msgspec.structs.replace(turn, content=text)

    def _read_call(self, item: FunctionCallItem, path: str) -> None:
        refuse(item, _REFUSED_OF_CALLS, prefix=f"{path}.")
        turn = self._turn or self._begin_turn()
        self._names[item.call_id] = item.name
        call = to_call(item.call_id, item.name, item.arguments, path)
        self._turn = msgspec.structs.replace(turn, tool_calls=(*turn.tool_calls, call))

    def _read_output(self, item: FunctionCallOutputItem, path: str) -> None:
        refuse(item, _REFUSED_OF_OUTPUTS, prefix=f"{path}.")
        name = self._names.get(item.call_id)
        if name is None:
            raise InvalidRequestError(
                f"{path}.call_id is {item.call_id[:80]!r}, but no function_call before it has"
                " this call_id",
                param=f"{path}.call_id",
            )
        text = _text(item.output, f"{path}.output")
        self.add(core.Message("tool", text, name, tool_call_id=item.call_id))

    def _read_reasoning(self, item: ReasoningItem, path: str) -> None:
        refuse(item, {"encrypted_content": ("",)}, prefix=f"{path}.")
        thought = "".join(part.text for part in item.content or item.summary or ())
        turn = self._turn
        if turn is None or turn.content or turn.tool_calls:
            turn = self._begin_turn()
        self._turn = msgspec.structs.replace(turn, reasoning=(turn.reasoning or "") + thought)

    def _begin_turn(self) -> core.Message:
        self._end_turn()
        return core.Message("assistant", "")

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn)
            self._turn = None


def _text(content: str | list[ContentPart], path: str) -> str:
    if isinstance(content, str):
        return content
    # A line each, as in a chat's message.
    return "\n".join(_part_text(part, f"{path}[{i}]") for i, part in enumerate(content))


def _part_text(part: ContentPart, path: str) -> str:
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type not in _TEXT_PARTS:
        raise UnsupportedFieldError(
            f"{path} is of type {part.type[:40]!r}; this model reads text only", param=path
        )
    refuse(part, _REFUSED_OF_PARTS, prefix=f"{path}.")
    if part.text is None:
        raise MissingFieldError(f"{path}.text is missing", param=f"{path}.text")
    return part.text
