"""OpenAI's dialect: /v1/*, and the text routes that llama-server and vLLM have beside it."""

from starlette.routing import Route

from llmserve.api.openai.chat import chat_completions
from llmserve.api.openai.completions import completions
from llmserve.api.openai.errors import describe_error, describe_response_error
from llmserve.api.openai.models import get_model, list_models
from llmserve.api.openai.responses import responses
from llmserve.api.openai.tokens import apply_template, detokenize, tokenize
from llmserve.api.operation import BODY, GENERATION, MODEL, Operation
from llmserve.api.schemas.errors import ErrorEnvelope
from llmserve.api.schemas.openai import Body, ModelCard, ModelCards
from llmserve.api.schemas.openai_chat import ChatChoice, ChatRequest, ChunkChoice
from llmserve.api.schemas.openai_completions import CompletionChoice, CompletionRequest
from llmserve.api.schemas.response_items import AnyStreamEvent, ResponseBody
from llmserve.api.schemas.responses import INPUT_ITEMS, FunctionTool, ResponsesRequest
from llmserve.api.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TemplateRequest,
    TemplateResponse,
    TokenizeRequest,
    TokenizeResponse,
)

ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{name:path}", get_model),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
]
OPERATIONS = {
    "/v1/models": Operation(
        summary="All models, under all their names", tag="OpenAI", answer=ModelCards
    ),
    "/v1/models/{name:path}": Operation(
        summary="One model", tag="OpenAI", answer=ModelCard, errors=(404,)
    ),
    "/v1/chat/completions": Operation(
        summary="Continue a conversation",
        tag="OpenAI",
        body=ChatRequest,
        example={
            "messages": [{"role": "user", "content": "Name three colours."}],
            "max_tokens": 32,
        },
        answer=Body[ChatChoice],
        events=(Body[ChunkChoice], ErrorEnvelope, "[DONE]"),
        errors=GENERATION,
    ),
    "/v1/completions": Operation(
        summary="Continue texts",
        tag="OpenAI",
        body=CompletionRequest,
        example={"prompt": "The capital of France is", "max_tokens": 8},
        answer=Body[CompletionChoice],
        events=(Body[CompletionChoice], ErrorEnvelope, "[DONE]"),
        errors=GENERATION,
    ),
    "/v1/responses": Operation(
        summary="Continue a conversation of items",
        tag="OpenAI",
        body=ResponsesRequest,
        example={"input": "Name three colours.", "max_output_tokens": 32},
        items={"input": INPUT_ITEMS, "tools": (FunctionTool,)},
        answer=ResponseBody,
        events=(AnyStreamEvent,),
        errors=GENERATION,
    ),
    "/tokenize": Operation(
        summary="The tokens of a text",
        tag="Text",
        body=TokenizeRequest,
        example={"content": "Hello"},
        answer=TokenizeResponse,
        errors=(*BODY, *MODEL),
    ),
    "/detokenize": Operation(
        summary="The text of tokens",
        tag="Text",
        body=DetokenizeRequest,
        example={"tokens": [1, 2, 3]},
        answer=DetokenizeResponse,
        errors=(*BODY, *MODEL),
    ),
    "/apply-template": Operation(
        summary="The text that a conversation is for the model",
        tag="Text",
        body=TemplateRequest,
        example={"messages": [{"role": "user", "content": "Hello"}]},
        answer=TemplateResponse,
        errors=(*BODY, *MODEL),
    ),
}
DESCRIBES = {  # how the errors of a path that begins so are told
    "/v1/responses": describe_response_error,
    **dict.fromkeys(("/v1/", "/tokenize", "/detokenize", "/apply-template"), describe_error),
}
