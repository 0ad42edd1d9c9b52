"""What the native routes take and give."""

from typing import Any

from llmserve.api.admin.health import Status
from llmserve.api.admin.models import ModelList, ModelStatus
from llmserve.api.endpoint import GENERATION, MODEL, Operation
from llmserve.api.http.errors import ErrorEnvelope
from llmserve.api.native.schemas import InferenceRequest, InferenceResponse, StreamDelta
from llmserve.config.schema import ConfigChange

OPERATIONS = {
    "/inference": Operation(
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
    ),
    "/models": Operation(summary="Every model and its state", tag="Models", answer=ModelList),
    "/models/reload": Operation(
        summary="Read models.toml again", tag="Models", answer=ConfigChange, errors=(400,)
    ),
    "/models/{name:path}/load": Operation(
        summary="Load a model now", tag="Models", answer=ModelStatus, errors=(*MODEL, 400)
    ),
    "/models/{name:path}/unload": Operation(
        summary="Free a model's memory", tag="Models", answer=ModelStatus, errors=(*MODEL, 400, 409)
    ),
    "/health": Operation(summary="The process lives", tag="Operation", answer=Status),
    "/ready": Operation(
        summary="The default model can answer", tag="Operation", answer=Status, errors=(503,)
    ),
    "/metrics": Operation(summary="For Prometheus", tag="Operation", answer="text/plain"),
    "/openapi.json": Operation(summary="This document", tag="Operation", answer=dict[str, Any]),
}
