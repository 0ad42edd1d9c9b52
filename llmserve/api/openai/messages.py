"""The wire's messages -> core's."""

from llmserve import core
from llmserve.api.openai.chat_schemas import Message, Part
from llmserve.api.openai.errors import UnsupportedFieldError
from llmserve.api.openai.params import refuse
from llmserve.api.openai.tools import to_calls
from llmserve.errors import InvalidRequestError
from llmserve.wire.validation import MissingFieldError

_REFUSED: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "function_call": (),
    "audio": (),
}
_ROLES = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}


def to_messages(wire: list[Message]) -> tuple[core.Message, ...]:
    """Raises `InvalidRequestError`s that name the message."""
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(wire))


def _message(wire: Message, path: str) -> core.Message:
    if wire.role == "function":
        raise UnsupportedFieldError(
            f"{path}.role is 'function', which is the old name of 'tool'", param=f"{path}.role"
        )
    refuse(wire, _REFUSED, prefix=f"{path}.")
    _check_fields_of_role(wire, path)
    return core.Message(
        role="system" if wire.role == "developer" else wire.role,
        content=_content(wire, f"{path}.content"),
        name=wire.name,
        reasoning=wire.reasoning_content,
        tool_calls=to_calls(wire.tool_calls or [], f"{path}.tool_calls"),
        tool_call_id=wire.tool_call_id,
    )


def _check_fields_of_role(wire: Message, path: str) -> None:
    if wire.role == "tool" and wire.tool_call_id is None:
        field = f"{path}.tool_call_id"
        raise MissingFieldError(f"{field} is missing: which call is this of?", param=field)
    for name, role in _ROLES.items():
        if getattr(wire, name) and wire.role != role:
            raise InvalidRequestError(
                f"{path}.{name} goes with role {role!r} only, not {wire.role!r}",
                param=f"{path}.{name}",
            )


def _content(wire: Message, path: str) -> str:
    match wire.content:
        case None if wire.tool_calls:
            return ""
        case None:
            raise MissingFieldError(f"{path} is missing", param=path)
        case str() as text:
            return text
        case parts:
            # A line each, as llama-server and vLLM do.
            return "\n".join(_text(part, f"{path}[{i}]") for i, part in enumerate(parts))


def _text(part: Part, path: str) -> str:
    if part.type != "text":
        raise UnsupportedFieldError(
            f"{path} is of type {part.type[:40]!r}; this model reads text only", param=path
        )
    if part.text is None:
        raise MissingFieldError(f"{path}.text is missing", param=f"{path}.text")
    return part.text
