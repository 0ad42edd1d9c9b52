"""How the input of a request is read, by every backend."""

from llmserve.core import Mode, Request
from llmserve.errors import InvalidRequestError


def resolve_mode(request: Request, default_mode: Mode | None, *, has_template: bool) -> Mode:
    """The mode that was asked for, else chat for messages, else the model's default.

    Raises `InvalidRequestError` where mode and input do not go together.
    """
    if request.prompt_tokens is not None:
        if request.mode in (None, Mode.COMPLETION) and request.system is None:
            return Mode.COMPLETION
        raise InvalidRequestError(
            "a prompt of tokens goes with mode completion only, without system", param="prompt"
        )
    mode = request.mode
    if mode is None and request.messages is not None:
        mode = Mode.CHAT
    elif mode is None:
        # A default of chat cannot apply to a bare prompt; its single-turn form can.
        fallback = Mode.INSTRUCT if has_template else Mode.COMPLETION
        mode = fallback if default_mode in (None, Mode.CHAT) else default_mode
    wants_messages = mode is Mode.CHAT
    if wants_messages and request.messages is None:
        raise InvalidRequestError("mode chat needs messages instead of prompt", param="mode")
    if not wants_messages and request.prompt is None:
        raise InvalidRequestError(f"mode {mode} needs prompt instead of messages", param="mode")
    if request.system is not None and mode is not Mode.INSTRUCT:
        raise InvalidRequestError(
            f"system goes with mode instruct only, and the mode is {mode}", param="system"
        )
    if mode is not Mode.COMPLETION and not has_template:
        raise InvalidRequestError(
            f"the model has no chat template, which mode {mode} needs; use mode completion",
            param="mode",
        )
    return mode
