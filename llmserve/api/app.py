"""The application: routes, error handlers, lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from llmserve.api import errors, models, openai, ops
from llmserve.api.docs import docs, docs_file
from llmserve.api.inference import inference
from llmserve.api.openapi import Document, openapi
from llmserve.api.operation import GENERATION, MODEL, Operation
from llmserve.api.request_id import RequestIds
from llmserve.api.schemas.errors import ErrorEnvelope
from llmserve.api.schemas.models import ModelList, ModelStatus
from llmserve.api.schemas.native import InferenceRequest, InferenceResponse, StreamDelta
from llmserve.api.schemas.ops import Status
from llmserve.errors import LlmserveError
from llmserve.gateway import Gateway
from llmserve.registry.config import ConfigChange

ROUTES = [
    Route("/inference", inference, methods=["POST"]),
    Route("/models", models.list_models),
    Route("/models/reload", models.reload_config, methods=["POST"]),
    Route("/models/{name:path}/load", models.load_model, methods=["POST"]),
    Route("/models/{name:path}/unload", models.unload_model, methods=["POST"]),
    Route("/health", ops.health),
    Route("/ready", ops.ready),
    Route("/metrics", ops.metrics),
    Route("/openapi.json", openapi),
    Route("/docs", docs, include_in_schema=False),
    Route("/docs/{file}", docs_file, include_in_schema=False),
    *openai.ROUTES,
]
OPERATIONS = {
    "/inference": Operation(
        summary="Complete a text, follow an instruction, or continue a conversation",
        tag="Inference",
        body=InferenceRequest,
        example={
            "prompt": "What is a llama?",
            "parameters": {"temperature": 0.7, "max_tokens": 32},
        },
        answer=InferenceResponse,
        events=(StreamDelta, InferenceResponse, ErrorEnvelope),
        errors=GENERATION,
    ),
    "/models": Operation(summary="Every model and its state", tag="Models", answer=ModelList),
    "/models/reload": Operation(
        summary="Read models.toml again", tag="Models", answer=ConfigChange, errors=(400,)
    ),
    "/models/{name:path}/load": Operation(
        summary="Load a model now", tag="Models", answer=ModelStatus, errors=MODEL
    ),
    "/models/{name:path}/unload": Operation(
        summary="Free a model's memory", tag="Models", answer=ModelStatus, errors=(*MODEL, 409)
    ),
    "/health": Operation(summary="The process lives", tag="Operation", answer=Status),
    "/ready": Operation(
        summary="The default model can answer", tag="Operation", answer=Status, errors=(503,)
    ),
    "/metrics": Operation(summary="For Prometheus", tag="Operation", answer="text/plain"),
    "/openapi.json": Operation(summary="This document", tag="Operation", answer=dict[str, Any]),
    **openai.OPERATIONS,
}


def create_app(gateway: Gateway) -> ASGIApp:
    """The whole service over `gateway`, which lives as long as the application's lifespan."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        gateway.start()
        yield
        await gateway.close()

    app = Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        exception_handlers={
            LlmserveError: errors.LlmserveErrorHandler(openai.DESCRIBES),
            HTTPException: errors.on_http_exception,
            ClientDisconnect: errors.on_client_gone,
            Exception: errors.on_bug,
        },
    )
    app.router.redirect_slashes = False  # a path is right or it is a 404
    app.state.gateway = gateway
    app.state.document = Document(ROUTES, OPERATIONS)
    return RequestIds(app)
