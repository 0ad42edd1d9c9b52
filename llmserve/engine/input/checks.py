"""What of a request only the model can judge."""

from llmserve.core import Request
from llmserve.engine.sampling.logprobs import MAX_LOGPROBS
from llmserve.engine.structured.grammar import check_tools
from llmserve.errors import InvalidRequestError


def check_request(request: Request, vocab_size: int) -> None:
    """Raises `InvalidRequestError` that names the field."""
    _check_constrained(request)
    _check_parameters(request, vocab_size)


def _check_parameters(request: Request, vocab_size: int) -> None:
    for token in request.sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"token {token} is not in the vocabulary of {vocab_size} tokens",
                param=f"parameters.logit_bias.{token}",
            )
    if request.num_logprobs is not None and not 0 <= request.num_logprobs <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"{request.num_logprobs} log probabilities were asked for; the range is 0 to"
            f" {MAX_LOGPROBS}",
            param="logprobs",
        )
    assert not request.prompt_logprobs or request.num_logprobs is not None, "the dialects' care"


def check_tool_use(request: Request) -> None:
    if request.tool_use is not None:
        check_tools(request.tool_use.tools)
        if request.sampling.ignore_eos and request.tool_use.choice != "none":
            raise InvalidRequestError(
                "ignore_eos does not go with tools: calls say where the answer ends",
                param="parameters.ignore_eos",
            )


def _check_constrained(request: Request) -> None:
    """Raises `InvalidRequestError` for what would break the promise of a constraint.

    It is that an answer with the finish reason stop matches.
    """
    if request.constraint is None:
        return
    field = request.constraint.field or "response_format"
    if request.sampling.ignore_eos:
        raise InvalidRequestError(
            f"ignore_eos does not go with {field}, which says where the answer ends",
            param="parameters.ignore_eos",
        )
    if request.stop:
        raise InvalidRequestError(
            f"stop does not go with {field}: it would cut the answer before it matches;"
            " use max_tokens to bound it",
            param="parameters.stop",
        )
