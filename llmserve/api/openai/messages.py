"""The wire's messages -> core's."""

from llmserve import core
from llmserve.api.body import MissingFieldError
from llmserve.api.openai.errors import UnsupportedFieldError
from llmserve.api.openai.params import refuse
from llmserve.api.schemas.openai_chat import Message, Part

_REFUSED: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
    "reasoning_content": (),
    "audio": (),
}


def to_messages(wire: list[Message]) -> tuple[core.Message, ...]:
    """Raises `InvalidRequestError`s that name the message."""
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(wire))


def _message(wire: Message, path: str) -> core.Message:
    if wire.role in ("tool", "function"):
        raise UnsupportedFieldError(
            f"{path}.role is {wire.role!r}; tools are not supported", param=f"{path}.role"
        )
    refuse(wire, _REFUSED, prefix=f"{path}.")
    role = "system" if wire.role == "developer" else wire.role
    return core.Message(role, _content(wire, f"{path}.content"), wire.name)


def _content(wire: Message, path: str) -> str:
    match wire.content:
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
