"""GET /v1/models and GET /v1/models/NAME."""

from starlette.requests import Request
from starlette.responses import Response

from llmserve.api.caller import caller_of
from llmserve.api.endpoint import endpoint
from llmserve.api.http.decode import json_response
from llmserve.api.openai.schemas import ModelCard, ModelCards
from llmserve.config.schema import ModelSpec
from llmserve.gateway import Gateway


@endpoint(
    "GET",
    "/v1/models",
    summary="All models, under all their names",
    tag="OpenAI",
    answer=ModelCards,
)
async def list_models(request: Request) -> Response:
    """Aliases too, each after its model: many clients offer or accept only what is listed."""
    gateway: Gateway = request.app.state.gateway
    cards = [
        _card(gateway, name, spec)
        for spec in caller_of(request).models
        for name in (spec.name, *spec.aliases)
    ]
    return json_response(ModelCards("list", cards))


@endpoint(
    "GET",
    "/v1/models/{name:path}",
    summary="One model",
    tag="OpenAI",
    answer=ModelCard,
    errors=(404,),
)
async def get_model(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    name = request.path_params["name"]
    return json_response(_card(gateway, name, caller_of(request).resolve(name)))


def _card(gateway: Gateway, name: str, spec: ModelSpec) -> ModelCard:
    model = gateway.pool.look(spec)  # of a remote one it knows nothing
    placement = model.placement
    return ModelCard(
        id=name,
        object="model",
        created=gateway.created_s,
        owned_by="llmserve",
        root=spec.name,
        context_length=placement.context_length if placement else spec.context_length,
        state=gateway.remotes.model(spec).state if spec.remote else model.state,
    )
