"""POST /inference, the native dialect: wire Structs <-> core."""

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from llmserve import core
from llmserve.api.caller import caller_of
from llmserve.api.collect import FoldedAnswer
from llmserve.api.endpoint import GENERATION, endpoint
from llmserve.api.http.decode import decode_body
from llmserve.api.http.errors import ErrorEnvelope
from llmserve.api.http.upload import read_body
from llmserve.api.native.schemas import (
    Details,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    StreamDelta,
    StreamReasoning,
)
from llmserve.api.streaming import StreamedAnswer, merge, sse_event
from llmserve.core import Delta, Event, Finished, ReasoningDelta, Started
from llmserve.errors import InvalidRequestError
from llmserve.gateway import Gateway
from llmserve.wire.fields import stop_strings
from llmserve.wire.folding import Folded
from llmserve.wire.native import to_constraint, to_sampling


@endpoint(
    "POST",
    "/inference",
    summary="Complete a text, follow an instruction, or continue a conversation",
    tag="Inference",
    body=InferenceRequest,
    example={
        "prompt": "What is a llama?",
        "parameters": {"temperature": 0.7, "max_tokens": 32},
    },
    answer=InferenceResponse,
    events=(StreamDelta, InferenceResponse, ErrorEnvelope),
    errors=GENERATION,
)
async def inference(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    server = gateway.config.server
    wire = decode_body(await read_body(request), InferenceRequest)
    events = caller_of(request).generate(to_core(wire))
    if wire.stream:
        return StreamedAnswer(events, StreamEncoder().encode, keep_alive_s=server.keep_alive_s)
    return FoldedAnswer(merge([events]), render_details if wire.details else render_text)


def to_core(wire: InferenceRequest) -> core.Request:
    """Raises `InvalidRequestError` unless exactly one of prompt and messages is given."""
    if (wire.prompt is None) == (wire.messages is None):
        problem = "both are given" if wire.prompt is not None else "neither is given"
        raise InvalidRequestError(f"give either prompt or messages; {problem}", param="prompt")
    parameters = wire.parameters or Parameters()
    return core.Request(
        model=wire.model,
        prompt=wire.prompt,
        messages=_messages(wire),
        mode=wire.mode,
        system=wire.system,
        sampling=to_sampling(msgspec.structs.asdict(parameters)),
        max_tokens=parameters.max_tokens,
        stop=stop_strings(parameters.stop),
        seed=parameters.seed,
        constraint=to_constraint(wire.response_format),
        priority=wire.priority or "interactive",
        deterministic=bool(wire.deterministic),
        timeout_s=wire.timeout,
    )


def _messages(wire: InferenceRequest) -> tuple[core.Message, ...] | None:
    if wire.messages is None:
        return None
    return tuple(core.Message(message.role, message.content) for message in wire.messages)


def render_text(folded: list[Folded]) -> bytes:
    return msgspec.json.encode(InferenceResponse(folded[0].text))


def render_details(folded: list[Folded]) -> bytes:
    (only,) = folded
    return encode_details(only.text, only.reasoning, only.started, only.finished)


def encode_details(text: str, reasoning: str, started: Started, finished: Finished) -> bytes:
    """The answer with `details`; also the last event of every stream."""
    details = Details(
        model=started.model,
        finish_reason=finished.reason,
        stop_sequence=finished.stop_sequence,
        prompt_tokens=finished.usage.prompt_tokens,
        cached_tokens=finished.usage.cached_tokens,
        generated_tokens=finished.usage.generated_tokens,
        seed=started.seed,
        timings=finished.timings,
        reasoning=reasoning or UNSET,
    )
    return msgspec.json.encode(InferenceResponse(text, details))


class StreamEncoder:
    """The events of one stream -> its bytes; remembers the texts for the last event."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._started: Started | None = None

    def encode(self, event: Event) -> bytes:
        match event:
            case Started():
                self._started = event
                return b""
            case Delta(text) if text:
                self._texts.append(text)
                return sse_event(msgspec.json.encode(StreamDelta(text)))
            case ReasoningDelta(text):
                self._reasonings.append(text)
                return sse_event(msgspec.json.encode(StreamReasoning(text)))
            case Finished():
                assert self._started
                text, reasoning = "".join(self._texts), "".join(self._reasonings)
                return sse_event(encode_details(text, reasoning, self._started, event))
            case _:
                return b""
