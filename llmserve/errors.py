"""Every error that llmserve raises on purpose, and the HTTP status each one means.

    LlmserveError
    ├── InvalidRequestError      400  the request is wrong; `param` names the field
    ├── AuthenticationError      401  no API key, or not one of ours
    ├── PermissionDeniedError    403  the key, or the page that asks, may not do this
    ├── ModelNotFoundError       404  no such model; the message lists those that exist
    ├── RequestTimeoutError      408  the client takes too long to send
    ├── TooLargeError            413  body over the cap, or prompt longer than the context
    ├── ModelBusyError           409  the model is in use, so it cannot be unloaded
    ├── QueueFullError           429  no place in the queue, or not one that would do
    │   └── ProviderLimitError        the same at a remote provider, in its words
    ├── RateLimitError           429  the API key is over one of its limits
    ├── UnavailableError         503  (family) try again later
    │   ├── ModelLoadingError         the model is still being loaded
    │   ├── ModelUnavailableError     the model cannot be loaded; the message says why
    │   ├── InsufficientMemoryError   it does not fit; the message has need and budget
    │   ├── EngineCrashedError        the model's process died while it was at the request
    │   │   └── RequestLostError           … before it was: asked again, it may be answered
    │   ├── ModelQuarantinedError     that has happened too often; the message has the fix
    │   ├── QueueTimeoutError         no slot became free in time
    │   ├── CrowdedError              too many connections, or too much is being sent at once
    │   └── ShuttingDownError         the server is draining
    ├── ProviderError            502  (family) a remote provider failed, or its answer is broken
    │   ├── ProviderAuthError         it does not take the key; the message names the variable
    │   ├── ProviderModelError        it does not have the model
    │   ├── ProviderUnreachableError  no connection, or it failed too often lately to be asked
    │   └── ProviderTimeoutError 504  it took too long
    ├── DeadlineError            504  the time that the request may take is over
    ├── EngineError              500  llama.cpp failed; the message says in which call
    ├── ConfigError              400  models.toml is wrong (start-up and reload)
    └── ModelFileError            -   a GGUF file is missing, truncated or lies about itself
        └── HubError              -   the hub cannot give it to us
            └── HubUnreachableError   offline, or no connection: what is on disk still works

Foreign exceptions are translated in one place per library: msgspec in `validation.py`,
llama.cpp's return codes in `engine/llama/call.py`, jinja in `chat/template.py`, huggingface_hub and
the disk it writes to in `hub/client.py`, httpx2 and the statuses of providers in
`remote/errors.py`.
"""

from typing import ClassVar

_MAX_SHOWN_LEN = 400


def harmless(text: str) -> str:
    """Words with something of a stranger's file in them: they neither flood nor forge a log."""
    if len(text) <= _MAX_SHOWN_LEN and text.isprintable():
        return text
    return ascii(text[:_MAX_SHOWN_LEN])


class LlmserveError(Exception):
    """Base of all errors with a meaning to the caller.

    `status`, `type` and `code` are part of the HTTP contract: `code` is stable and meant for
    programs, the message for people.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.log_message = message  # without the words of others, which may quote a request
        self.param = param
        self.retry_after_s = retry_after_s


def as_llmserve_error(error: BaseException) -> LlmserveError:
    """What may be told of it: of a bug, nothing."""
    if isinstance(error, LlmserveError):
        return error
    return LlmserveError("internal error; see the server's log")


def shutting_down(what: str = "the server") -> "ShuttingDownError":
    return ShuttingDownError(f"{what} is shutting down", retry_after_s=5)


class InvalidRequestError(LlmserveError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class AuthenticationError(LlmserveError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDeniedError(LlmserveError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class ModelNotFoundError(LlmserveError):
    status = 404
    type = "not_found_error"
    code = "model_not_found"


class RequestTimeoutError(LlmserveError):
    status = 408
    type = "timeout_error"
    code = "request_timeout"


class TooLargeError(LlmserveError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class ModelBusyError(LlmserveError):
    status = 409
    type = "conflict_error"
    code = "model_busy"


class QueueFullError(LlmserveError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ProviderLimitError(QueueFullError):
    code = "provider_limit"


class RateLimitError(LlmserveError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnavailableError(LlmserveError):
    status = 503
    type = "unavailable_error"
    code = "unavailable"


class ModelLoadingError(UnavailableError):
    code = "model_loading"


class ModelUnavailableError(UnavailableError):
    code = "model_unavailable"


class InsufficientMemoryError(UnavailableError):
    code = "insufficient_memory"


class EngineCrashedError(UnavailableError):
    code = "engine_crashed"
    log_lines: tuple[str, ...] = ()  # the last ones of the process


class RequestLostError(EngineCrashedError):
    """`is_suspect`: it was being prepared, so that it may itself be the reason."""

    is_suspect = False


class ModelQuarantinedError(UnavailableError):
    code = "model_quarantined"


class QueueTimeoutError(UnavailableError):
    code = "queue_timeout"


class CrowdedError(UnavailableError):
    code = "crowded"


class ShuttingDownError(UnavailableError):
    code = "shutting_down"


class ProviderError(LlmserveError):
    status = 502
    type = "provider_error"
    code = "provider_error"


class ProviderAuthError(ProviderError):
    code = "provider_auth"


class ProviderModelError(ProviderError):
    code = "provider_model"


class ProviderUnreachableError(ProviderError):
    code = "provider_unreachable"


class ProviderTimeoutError(ProviderError):
    status = 504
    code = "provider_timeout"


class DeadlineError(LlmserveError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class EngineError(LlmserveError):
    code = "engine_error"


class ConfigError(LlmserveError):
    status = 400  # for a reload; at start-up it ends the process
    type = "invalid_request_error"
    code = "config_error"


class ModelFileError(LlmserveError):
    code = "model_file_error"


class HubError(ModelFileError):
    code = "hub_error"


class HubUnreachableError(HubError):
    code = "hub_unreachable"
