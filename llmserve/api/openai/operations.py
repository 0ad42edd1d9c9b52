"""What the dialect's routes take and give."""

from llmserve.api.endpoint import BODY, GENERATION, MODEL, Operation
from llmserve.api.http.errors import ErrorEnvelope
from llmserve.api.openai.chat_schemas import ChatChoice, ChatRequest, ChunkChoice
from llmserve.api.openai.responses.items import AnyStreamEvent, ResponseBody
from llmserve.api.openai.responses.schemas import INPUT_ITEMS, FunctionTool, ResponsesRequest
from llmserve.api.openai.schemas import (
    Body,
    CompletionChoice,
    CompletionRequest,
    EmbeddingList,
    EmbeddingsRequest,
    ModelCard,
    ModelCards,
)
from llmserve.api.openai.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TemplateRequest,
    TemplateResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)

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
    "/v1/embeddings": Operation(
        summary="A vector for each text",
        tag="OpenAI",
        body=EmbeddingsRequest,
        example={"input": ["Rivers shape land.", "Bread is old."]},
        answer=EmbeddingList,
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
    "/tokenizer_info": Operation(
        summary="The model's tokenizer",
        tag="Text",
        query=("model",),
        answer=TokenizerInfo,
        errors=MODEL,
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
