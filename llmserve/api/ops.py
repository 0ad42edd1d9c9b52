"""For operators: /health (the process lives), /ready (it can answer), /metrics."""

from starlette.requests import Request
from starlette.responses import Response

from llmserve.api.body import json_response
from llmserve.api.schemas.ops import Status
from llmserve.gateway import Gateway


async def health(request: Request) -> Response:
    return json_response(Status("ok"))


async def ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    gateway.check_ready()
    return json_response(Status("ready"))


async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.render_metrics(), media_type=gateway.metrics.content_type)
