"""GET /models, and the commands load, unload and reload."""

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmserve.api.caller import caller_of
from llmserve.api.endpoint import MODEL, endpoint
from llmserve.api.http.auth import Level
from llmserve.api.http.decode import json_response
from llmserve.config.schema import ConfigChange, ModelSpec
from llmserve.gateway import Gateway
from llmserve.machine.memory import process_bytes
from llmserve.pool.model import Model, State

if TYPE_CHECKING:
    from llmserve.remote.model import RemoteModel
from msgspec import Struct


class AddressStatus(Struct):
    """One address of a remote model."""

    url: str
    state: str  # closed: it is asked | open: it is not, after failures | half-open: one trial
    active: int
    error: str | None  # the last one, until it answers again


class ModelStatus(Struct, kw_only=True):
    name: str
    aliases: tuple[str, ...]
    source: str | None  # null: only admins see it, `pid`, `memory`, `log`, `addresses`
    # cold | loading | ready | unloading | failed | quarantined; remote: ready | half-open | open
    state: str
    doing: str | None = None  # of a load: reading | downloading | waiting for memory | loading
    progress: float | None = None  # of what it is doing, 0 to 1
    bytes: int | None = None  # estimate of the memory it takes; null before the first load
    context_length: int | None = None
    slots: int | None  # requests answered at the same time; null: no limit here
    active: int  # requests that hold the model, or wait for it
    last_used: float | None  # unix time
    pinned: bool = False
    error: str | None
    pid: int | None = None  # of the process that the model is loaded in; null: it has none
    memory: int | None = None  # bytes that this process has in memory, with the file's pages
    crashes: int = 0  # processes of this model that died
    log: list[str] | None = None  # the last lines of the last one of them
    fallback: tuple[str, ...]
    addresses: list[AddressStatus] | None = None  # of a remote model


class ModelList(Struct):
    models: list[ModelStatus]
    memory_budget: int  # bytes
    memory_used: int  # bytes, by estimate


@endpoint("GET", "/models", summary="Every model and its state", tag="Models", answer=ModelList)
async def list_models(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    caller = caller_of(request)
    models = [_status(gateway, spec) for spec in caller.models]
    body = ModelList(
        models=models if caller.is_admin else list(map(_outlined, models)),
        memory_budget=gateway.pool.budget_bytes,
        memory_used=gateway.pool.resident_bytes,
    )
    return json_response(body)


@endpoint(
    "POST",
    "/models/{name:path}/load",
    level=Level.ADMIN,
    summary="Load a model now",
    tag="Models",
    answer=ModelStatus,
    errors=(*MODEL, 400),
)
async def load_model(request: Request) -> Response:
    """Answers when the model is ready, or with what keeps it from being so."""
    gateway: Gateway = request.app.state.gateway
    spec = gateway.local(request.path_params["name"])
    gateway.pool.forgive(spec)
    async with gateway.pool.lease(spec):
        pass
    return json_response(_status(gateway, spec))


@endpoint(
    "POST",
    "/models/{name:path}/unload",
    level=Level.ADMIN,
    summary="Free a model's memory",
    tag="Models",
    answer=ModelStatus,
    errors=(*MODEL, 400, 409),
)
async def unload_model(request: Request) -> Response:
    """Answers when the memory is free; 409 while requests are running."""
    gateway: Gateway = request.app.state.gateway
    spec = gateway.local(request.path_params["name"])
    await gateway.pool.unload(spec)
    return json_response(_status(gateway, spec))


@endpoint(
    "POST",
    "/models/reload",
    level=Level.ADMIN,
    summary="Read models.toml again",
    tag="Models",
    answer=ConfigChange,
    errors=(400,),
)
async def reload_config(request: Request) -> Response:
    """Reads models.toml again; a file with a mistake changes nothing and gets a 400."""
    gateway: Gateway = request.app.state.gateway
    return json_response(await gateway.reload())


def _outlined(status: ModelStatus) -> ModelStatus:
    """Without the inside of this machine, and last words, which can have words of others."""
    return msgspec.structs.replace(
        status, source=None, addresses=None, pid=None, memory=None, log=None
    )


def _status(gateway: Gateway, spec: ModelSpec) -> ModelStatus:
    if spec.remote:
        return _remote_status(gateway.remotes.model(spec))
    return _local_status(gateway.pool.look(spec))


def _remote_status(model: "RemoteModel") -> ModelStatus:
    addresses = [
        AddressStatus(address.url, address.state, address.num_active, address.error)
        for address in model.addresses.all
    ]
    return ModelStatus(
        name=model.spec.name,
        aliases=model.spec.aliases,
        source=model.spec.source,
        state=model.state,
        slots=model.spec.max_concurrency,
        active=model.num_active,
        last_used=model.last_used_s or None,
        error=model.addresses.error,
        fallback=model.spec.fallback,
        addresses=addresses,
    )


def _local_status(model: Model) -> ModelStatus:
    plan = model.plan
    return ModelStatus(
        name=model.spec.name,
        aliases=model.spec.aliases,
        source=model.spec.source,
        state=model.state,
        doing=model.progress.doing if model.state is State.LOADING else None,
        progress=round(model.progress.fraction, 3) if model.state is State.LOADING else None,
        bytes=plan.size_bytes if plan else None,
        context_length=plan.context_length if plan else model.spec.context_length,
        slots=plan.max_sequences if plan else model.spec.max_concurrency,
        active=model.num_leases,
        last_used=model.last_used_s or None,
        pinned=model.spec.pinned,
        error=model.error.message if model.error else None,
        pid=model.engine.pid if model.engine else None,
        memory=process_bytes(model.engine.pid) if model.engine and model.engine.pid else None,
        crashes=model.restarts.num_crashes,
        log=list(model.log_lines) or None,
        fallback=model.spec.fallback,
    )
