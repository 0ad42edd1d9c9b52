"""What is done on the background's event loop for one call."""

import asyncio
import contextlib
from collections.abc import Sequence

from llmserve.config.schema import ModelSpec
from llmserve.core import Queued, Request, Started
from llmserve.gateway import Gateway
from llmserve.library.results import Generation, to_generation
from llmserve.wire.folding import Folded

_MAX_AT_ONCE = 512  # requests of one list that the engine has; more than a model has slots


async def load(gateway: Gateway, spec: ModelSpec) -> None:
    """Return when the model is there; a remote one always is."""
    if not spec.remote:
        async with gateway.engine(spec.name):
            pass


async def generate(gateway: Gateway, request: Request) -> Generation:
    folded: Folded | None = None
    async with contextlib.aclosing(gateway.generate(request)) as events:
        async for event in events:
            if isinstance(event, Started):
                folded = Folded(event)
            elif folded and not isinstance(event, Queued):
                folded.add(event)
    assert folded, "every answer starts"
    return to_generation(folded)


async def generate_all(gateway: Gateway, requests: Sequence[Request]) -> list[Generation]:
    """In the order of the requests. The first failure is raised, and cancels the others."""
    room = asyncio.Semaphore(_MAX_AT_ONCE)

    async def one(request: Request) -> Generation:
        async with room:
            return await generate(gateway, request)

    tasks = [asyncio.create_task(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)  # what they give back is given back when this returns
