"""OpenAI's dialect: /v1/*, and the text routes that llama-server and vLLM have beside it.

Knows no other dialect; says in its headers and errors what it cannot honour.
"""

from llmserve.api.endpoint import Dialect
from llmserve.api.openai.chat import chat_completions
from llmserve.api.openai.completions import completions
from llmserve.api.openai.embeddings import embeddings
from llmserve.api.openai.errors import describe_error, describe_response_error
from llmserve.api.openai.models import get_model, list_models
from llmserve.api.openai.responses.route import responses
from llmserve.api.openai.tokenize import apply_template, detokenize, tokenize, tokenizer_info

RESPONSES = Dialect((responses,), describe_response_error, prefix="/v1/responses")
OPENAI = Dialect(
    (
        list_models,
        get_model,
        chat_completions,
        completions,
        embeddings,
        tokenize,
        detokenize,
        tokenizer_info,
        apply_template,
    ),
    describe_error,
    prefix="/v1/",
)
