"""For operators: /health (the process lives), /ready (it can answer), /metrics."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmserve.errors import ModelLoadingError
from llmserve.gateway import Gateway


async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    if not gateway.is_ready:
        name = gateway.config.default.name
        raise ModelLoadingError(f"the default model {name!r} cannot answer yet", retry_after_s=1)
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.metrics.render(), media_type=gateway.metrics.content_type)
