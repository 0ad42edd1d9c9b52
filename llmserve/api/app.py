"""The application: the table of endpoints, error handlers, lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from llmserve.api.admin import ADMIN
from llmserve.api.docs import DOCS
from llmserve.api.endpoint import Dialect, Endpoints
from llmserve.api.http import errors
from llmserve.api.http.auth import Keys
from llmserve.api.http.origins import HostCheck, with_cors
from llmserve.api.http.request_log import RequestLog
from llmserve.api.http.upload import Uploads
from llmserve.api.native import NATIVE
from llmserve.api.openai import OPENAI, RESPONSES
from llmserve.api.openapi import Document, openapi
from llmserve.errors import LlmserveError
from llmserve.gateway import Gateway

ENDPOINTS = Endpoints(
    (NATIVE, ADMIN, Dialect((openapi,)), DOCS, RESPONSES, OPENAI),
)


def create_app(gateway: Gateway) -> ASGIApp:
    """The whole service over `gateway`, which lives as long as the application's lifespan."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        gateway.start()
        yield
        await gateway.close()

    on_error = errors.LlmserveErrorHandler(ENDPOINTS.describe_for)
    app = Starlette(
        routes=ENDPOINTS.routes(),
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
    app.state.document = Document(ENDPOINTS.all)
    return _guarded(app, gateway, on_error)


def _guarded(app: ASGIApp, gateway: Gateway, on_error: errors.LlmserveErrorHandler) -> ASGIApp:
    """`app` behind all that looks at a request before it; the last line is the first to look."""
    server = gateway.config.server
    app = Keys(app, gateway, on_error, ENDPOINTS.level)
    app = with_cors(app, server)  # browsers ask without a key what they may ask with one
    app = HostCheck(app, server, on_error)
    return RequestLog(app, gateway.tracing, ENDPOINTS.is_probe, log_prompts=server.log_prompts)
