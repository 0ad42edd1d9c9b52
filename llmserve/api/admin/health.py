"""For operators: /health (the process lives), /ready (it can answer), /metrics."""

from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from llmserve.api.endpoint import endpoint
from llmserve.api.http.auth import Level
from llmserve.api.http.decode import json_response
from llmserve.errors import LlmserveError
from llmserve.gateway import Gateway


class Status(Struct):
    status: Literal["ok", "ready"]


@endpoint(
    "GET",
    "/health",
    level=Level.OPEN,
    summary="The process lives",
    tag="Operation",
    answer=Status,
    is_probe=True,
)
async def health(request: Request) -> Response:
    return json_response(Status("ok"))


@endpoint(
    "GET",
    "/ready",
    level=Level.OPEN,
    summary="The default model can answer",
    tag="Operation",
    answer=Status,
    errors=(503,),
    is_probe=True,
)
async def ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        gateway.check_ready()
    except LlmserveError as error:
        if gateway.keyring.is_open:
            raise
        # A probe has no key, and names and paths are not for all.
        message = "the server is not ready; GET /models says why"
        raise type(error)(message, retry_after_s=error.retry_after_s) from error
    return json_response(Status("ready"))


@endpoint(
    "GET",
    "/metrics",
    level=Level.ADMIN,
    summary="For Prometheus",
    tag="Operation",
    answer="text/plain",
    is_probe=True,
)
async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.render_metrics(), media_type=gateway.metrics.content_type)
