"""For operators: /health (the process lives), /ready (it can answer), /metrics."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmserve.api.schemas.ops import Status
from llmserve.gateway import Gateway


async def health(request: Request) -> Response:
    return _json(Status("ok"))


async def ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    gateway.check_ready()
    return _json(Status("ready"))


async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.metrics.render(), media_type=gateway.metrics.content_type)


def _json(body: Status) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
