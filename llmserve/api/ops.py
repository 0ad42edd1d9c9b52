"""For operators: /health (the process lives), /ready (it can answer), /metrics."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmserve.gateway import Gateway


async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    gateway.check_ready()
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.render_metrics(), media_type=gateway.metrics.content_type)
