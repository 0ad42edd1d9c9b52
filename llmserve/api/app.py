"""The application: routes, error handlers, lifespan."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from llmserve.api import openai, operations
from llmserve.api.admin import health, models
from llmserve.api.http import errors
from llmserve.api.http.auth import Keys
from llmserve.api.http.origins import HostCheck, with_cors
from llmserve.api.http.request_log import RequestLog
from llmserve.api.http.upload import Uploads
from llmserve.api.native.inference import inference
from llmserve.api.openapi import Document, openapi
from llmserve.api.swagger_ui import docs, docs_file
from llmserve.errors import LlmserveError
from llmserve.gateway import Gateway

ROUTES = [
    Route("/inference", inference, methods=["POST"]),
    Route("/models", models.list_models),
    Route("/models/reload", models.reload_config, methods=["POST"]),
    Route("/models/{name:path}/load", models.load_model, methods=["POST"]),
    Route("/models/{name:path}/unload", models.unload_model, methods=["POST"]),
    Route("/health", health.health),
    Route("/ready", health.ready),
    Route("/metrics", health.metrics),
    Route("/openapi.json", openapi),
    Route("/docs", docs, include_in_schema=False),
    Route("/docs/{file}", docs_file, include_in_schema=False),
    *openai.ROUTES,
]
for route in ROUTES:  # "$" lets a line's end pass: /metrics%0a is no path that `Keys` knows
    route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
OPERATIONS = operations.OPERATIONS | openai.OPERATIONS


def create_app(gateway: Gateway) -> ASGIApp:
    """The whole service over `gateway`, which lives as long as the application's lifespan."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        gateway.start()
        yield
        await gateway.close()

    on_error = errors.LlmserveErrorHandler(openai.DESCRIBES)
    app = Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        exception_handlers={
            LlmserveError: on_error,
            HTTPException: errors.on_http_exception,
            ClientDisconnect: errors.on_client_gone,
            Exception: errors.on_bug,
        },
    )
    app.router.redirect_slashes = False  # a path is right or it is a 404
    app.state.gateway = gateway
    app.state.uploads = Uploads(gateway.config.server)
    app.state.document = Document(ROUTES, OPERATIONS)
    return _guarded(app, gateway, on_error)


def _guarded(app: ASGIApp, gateway: Gateway, on_error: errors.LlmserveErrorHandler) -> ASGIApp:
    """`app` behind all that looks at a request before it; the last line is the first to look."""
    server = gateway.config.server
    app = Keys(app, gateway, on_error)
    app = with_cors(app, server)  # browsers ask without a key what they may ask with one
    app = HostCheck(app, server, on_error)
    return RequestLog(app, gateway.tracing, log_prompts=server.log_prompts)
