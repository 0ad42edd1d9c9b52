"""The gateway as the one who asks may use it: the same for every dialect."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec
from starlette.requests import Request

from llmserve import core
from llmserve.auth.keyring import Grant
from llmserve.auth.rate_limit import Bill
from llmserve.config.schema import ModelSpec
from llmserve.core import EmbeddingRequest, Embeddings, EventStream
from llmserve.engine.interface import Engine
from llmserve.errors import ModelNotFoundError
from llmserve.gateway import Gateway


def caller_of(request: Request) -> "Caller":
    return Caller(request.app.state.gateway, request.scope.get("state", {}).get("grant"))


class Caller:
    """With a grant: only its models, in its cache namespace, at its expense."""

    def __init__(self, gateway: Gateway, grant: Grant | None) -> None:
        self._gateway = gateway
        self._grant = grant

    @property
    def is_admin(self) -> bool:
        return self._grant is None or self._grant.key.admin

    @property
    def models(self) -> list[ModelSpec]:
        """Those it may use, in the order of models.toml."""
        specs = self._gateway.config.models
        if self._grant is None or self._grant.key.models is None:
            return list(specs)
        names = self._gateway.config.names
        allowed = {names[name].name for name in self._grant.key.models if name in names}
        return [spec for spec in specs if spec.name in allowed]

    def resolve(self, name: str | None) -> ModelSpec:
        """As `Gateway.resolve`; a model that it may not use does not exist for it."""
        self._check(name)
        return self._gateway.resolve(name)

    def _check(self, name: str | None) -> None:
        if self._grant is None or self._grant.key.models is None:
            return
        allowed = self.models
        config = self._gateway.config
        spec = config.default if name is None else config.names.get(name)
        if spec in allowed:
            return
        known = ", ".join(sorted(n for n, spec in config.names.items() if spec in allowed))
        wanted = config.default.name if name is None else name
        raise ModelNotFoundError(
            f"no model {wanted!r} for this API key; there are: {known}", param="model"
        )

    def generate(self, request: core.Request, *, counts_prompt: bool = True) -> EventStream:
        """As `Gateway.generate`. Raises `ModelNotFoundError` at once."""
        if self._grant is None:
            return self._gateway.generate(request)
        self._check(request.model)
        request = msgspec.structs.replace(request, cache_namespace=self._grant.namespace)
        return self._charged(self._grant, request, counts_prompt)

    def generate_all(self, requests: Sequence[core.Request]) -> list[EventStream]:
        """The choices of one request: those to the same prompt, which follow each other, have it
        on their bill once, as in `usage`."""
        return [
            self.generate(request, counts_prompt=i == 0 or not _same(requests[i - 1], request))
            for i, request in enumerate(requests)
        ]

    async def _charged(
        self, grant: Grant, request: core.Request, counts_prompt: bool
    ) -> EventStream:
        bill = Bill(grant.charge, counts_prompt=counts_prompt)
        try:
            async with contextlib.aclosing(self._gateway.generate(request)) as events:
                async for event in events:
                    bill.see(event)
                    yield event
        finally:
            self._count(grant, bill.num_charged)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `Gateway.embed`."""
        self._check(request.model)
        embeddings = await self._gateway.embed(request)
        if self._grant:
            self._grant.charge(embeddings.prompt_tokens)
            self._count(self._grant, embeddings.prompt_tokens)
        return embeddings

    def engine(self, model: str | None) -> AbstractAsyncContextManager[Engine]:
        """As `Gateway.engine`."""
        self._check(model)
        return self._gateway.engine(model)

    def _count(self, grant: Grant, num_tokens: int) -> None:
        self._gateway.metrics.key_tokens.labels(grant.name).inc(num_tokens)


def _same(one: core.Request, other: core.Request) -> bool:
    """Whether their prompt is the very same object."""
    return (
        one.prompt is other.prompt
        and one.prompt_tokens is other.prompt_tokens
        and one.messages is other.messages
    )
