"""OpenAI's dialect: /v1/*, and the text routes that llama-server and vLLM have beside it."""

from starlette.routing import Route

from llmserve.api.openai.chat import chat_completions
from llmserve.api.openai.completions import completions
from llmserve.api.openai.embeddings import embeddings
from llmserve.api.openai.errors import describe_error, describe_response_error
from llmserve.api.openai.models import get_model, list_models
from llmserve.api.openai.operations import OPERATIONS
from llmserve.api.openai.responses.route import responses
from llmserve.api.openai.tokenize import apply_template, detokenize, tokenize, tokenizer_info

__all__ = ["DESCRIBES", "OPERATIONS", "ROUTES"]

ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{name:path}", get_model),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
    Route("/apply-template", apply_template, methods=["POST"]),
]
_TEXT_PATHS = ("/v1/", "/tokenize", "/detokenize", "/tokenizer_info", "/apply-template")
DESCRIBES = {  # how the errors of a path that begins so are told
    "/v1/responses": describe_response_error,
    **dict.fromkeys(_TEXT_PATHS, describe_error),
}
