"""LlmserveError in OpenAI's words: what its clients look for in `type`, `code` and `param`."""

from collections.abc import Mapping

from llmserve.api.http.decode import UnknownKindError
from llmserve.api.http.errors import Description, ErrorBody, describe
from llmserve.api.http.upload import BodyTooLargeError
from llmserve.errors import (
    AuthenticationError,
    InvalidRequestError,
    LlmserveError,
    ModelNotFoundError,
    QueueFullError,
    TooLargeError,
)
from llmserve.wire.validation import MissingFieldError, UnknownFieldError


class UnsupportedFieldError(InvalidRequestError):
    """A field that OpenAI has, that would change the answer, and that we do not support."""


_CODES: dict[type[LlmserveError], str] = {  # the first that fits
    BodyTooLargeError: "request_too_large",
    UnsupportedFieldError: "unsupported_parameter",
    UnknownKindError: "unsupported_parameter",
    UnknownFieldError: "unknown_parameter",
    MissingFieldError: "missing_required_parameter",
    InvalidRequestError: "invalid_value",
    QueueFullError: "rate_limit_exceeded",
}
# What the layers below call a field that has another name here.
_PARAMS = {
    "mode": "messages",
    "prompt_tokens": "prompt",
    "num_logprobs": "logprobs",
    "constraint": "response_format",
}
_RESPONSE_PARAMS = {
    **_PARAMS,
    "mode": "input",
    "messages": "input",
    "num_logprobs": "top_logprobs",
}
_RESPONSE_WORDS = {  # what chats call otherwise; the longest first
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "].function.": "].",
}


def describe_error(error: LlmserveError, params: Mapping[str, str] = _PARAMS) -> Description:
    """A prompt beyond the context is a 400 with a code of its own, where natively it is a 413."""
    status, body = describe(error)
    param = _param(body.param, params) if not isinstance(error, UnknownFieldError) else body.param
    if isinstance(error, TooLargeError) and not isinstance(error, BodyTooLargeError):
        # Libraries that cut a conversation to size look for this code, or for these words.
        message = f"This model's maximum context length is exceeded: {error.message}"
        return _invalid(400, "context_length_exceeded", message, param)
    if isinstance(error, ModelNotFoundError | AuthenticationError):
        return _invalid(status, error.code, error.message, param)
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), error.code)
    kind = "server_error" if status >= 500 else body.type
    return Description(status, ErrorBody(kind, code, error.message, param))


def describe_response_error(error: LlmserveError) -> Description:
    """As `describe_error`, with the names that fields have in a request for a response."""
    status, body = describe_error(error, _RESPONSE_PARAMS)
    message, param = body.message, body.param
    for old, new in _RESPONSE_WORDS.items():
        message = message.replace(old, new)
        param = param.replace(old, new) if param else None
    return Description(status, ErrorBody(body.type, body.code, message, param))


def _invalid(status: int, code: str, message: str, param: str | None) -> Description:
    return Description(status, ErrorBody("invalid_request_error", code, message, param))


def _param(param: str | None, params: Mapping[str, str]) -> str | None:
    if param is None:
        return None
    return params.get(param, param.removeprefix("parameters."))
