"""LlmserveError in OpenAI's words: what its clients look for in `type`, `code` and `param`."""

from llmserve.api.body import BodyTooLargeError, MissingFieldError, UnknownFieldError
from llmserve.api.errors import Description, ErrorBody, describe
from llmserve.errors import (
    InvalidRequestError,
    LlmserveError,
    ModelNotFoundError,
    QueueFullError,
    TooLargeError,
)


class UnsupportedFieldError(InvalidRequestError):
    """A field that OpenAI has, that would change the answer, and that we do not support."""


_CODES: dict[type[LlmserveError], str] = {  # the first that fits
    BodyTooLargeError: "request_too_large",
    UnsupportedFieldError: "unsupported_parameter",
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


def describe_error(error: LlmserveError) -> Description:
    """A prompt beyond the context is a 400 with a code of its own, where natively it is a 413."""
    status, body = describe(error)
    param = _param(body.param)
    if isinstance(error, TooLargeError) and not isinstance(error, BodyTooLargeError):
        # Libraries that cut a conversation to size look for this code, or for these words.
        message = f"This model's maximum context length is exceeded: {error.message}"
        return _invalid(400, "context_length_exceeded", message, param)
    if isinstance(error, ModelNotFoundError):
        return _invalid(404, error.code, error.message, param)
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), error.code)
    kind = "server_error" if status >= 500 else body.type
    return Description(status, ErrorBody(kind, code, error.message, param))


def _invalid(status: int, code: str, message: str, param: str | None) -> Description:
    return Description(status, ErrorBody("invalid_request_error", code, message, param))


def _param(param: str | None) -> str | None:
    if param is None:
        return None
    return _PARAMS.get(param, param.removeprefix("parameters."))
